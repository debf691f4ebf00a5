"""What happens between two denoising steps: progress is saved now and then, and all ranks stop together when asked."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from wan_ray.errors import ClipStoppedError
from wan_ray.parallel.process_group import Groups
from wan_ray.sampling.state import Progress
from wan_ray.stages.items import Item

Save = Callable[[bytes], None]
ShouldStop = Callable[[], str | None]


@dataclass(frozen=True, kw_only=True)
class Pause:
    """How one clip may be interrupted; only what rank 0 of a gang is given counts.

    save is handed a clip's progress as bytes, at most every save_every_s and before a stop; it must not raise in a
    gang, where the other ranks would wait for this one. should_stop says why to stop, or None.
    """

    save: Save | None = None
    save_every_s: float = 60.0
    should_stop: ShouldStop | None = None


class BetweenSteps:
    """One clip's pauses. Called before each of its steps, on all ranks of a gang."""

    def __init__(self, pause: Pause, *, groups: Groups | None, recipe: Mapping[str, str], num_steps: int) -> None:
        self._pause = pause
        self._groups = groups
        self._recipe = recipe
        self._num_steps = num_steps
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Save if it is time; ClipStoppedError, on all ranks, when rank 0 is to stop."""
        step = progress.state.step
        leads = self._groups is None or self._groups.rank == 0
        reason = self._pause.should_stop() if leads and self._pause.should_stop is not None else None
        stops = reason is not None
        if self._groups is not None:
            stops = bool(self._groups.from_leader(stops))
        if leads:
            self._save(progress, now=stops)
        if stops:
            raise ClipStoppedError(f"stopped after {step} of {self._num_steps} steps: {reason or 'as rank 0 was told'}")

    def _save(self, progress: Progress, *, now: bool) -> None:
        step, save = progress.state.step, self._pause.save
        if self._saved_step is None:  # what a clip starts from is nothing new
            self._saved_step = step
        due = now or time.monotonic() - self._saved_at >= self._pause.save_every_s
        if save is None or step == self._saved_step or not due:
            return
        save(progress.to_bytes(self._recipe))
        self._saved_step, self._saved_at = step, time.monotonic()


def recipe_of(item: Item, fingerprint: str) -> dict[str, str]:
    """What a clip's latents depend on, beside the layout of its ranks; fingerprint is the DiT's."""
    request = item.sound
    text = json.dumps([asdict(request), dict(item.weights)], sort_keys=True)
    return {
        "solver": request.solver,
        "num_inference_steps": str(request.num_inference_steps),
        "flow_shift": repr(request.flow_shift),
        "seed": str(request.seed),
        "size": f"{request.width}x{request.height}x{request.num_frames}",
        "transformer": fingerprint,
        "request": hashlib.sha256(text.encode()).hexdigest()[:32],
        "conditions": _digest(item.tensors),
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of what was made of the row's texts, images and videos: a file may be another one by now."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]
