"""What a solver remembers between steps, as plain values, and how a clip's progress is saved and gone on from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from wan_ray.errors import ProgressError

_VERSION = "1"


@dataclass(frozen=True, kw_only=True)
class SolverState:
    """step: steps done. clean: estimates of the clean latents, newest first, at most two.

    start, order: where the last step began and its order, for a solver that corrects it afterwards.
    """

    step: int = 0
    clean: tuple[Tensor, ...] = ()
    start: Tensor | None = None
    order: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A clip between two steps: all that the next step needs. Whole on every rank, whatever the ranks' layout."""

    latents: Tensor
    state: SolverState

    def to(self, device: torch.device) -> Self:
        """On a device."""
        state = self.state
        moved = SolverState(
            step=state.step,
            clean=tuple(x.to(device) for x in state.clean),
            start=None if state.start is None else state.start.to(device),
            order=state.order,
        )
        return type(self)(latents=self.latents.to(device), state=moved)

    def to_bytes(self, recipe: Mapping[str, str]) -> bytes:
        """As safetensors. recipe: what the latents depend on, by name, told again when they are gone on from."""
        state = self.state
        tensors = {"latents": self.latents, **{f"clean.{i}": x for i, x in enumerate(state.clean)}}
        if state.start is not None:
            tensors["start"] = state.start
        # Copies, for save() refuses tensors that share memory.
        copies = {name: x.cpu().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
        head = {"version": _VERSION, "step": state.step, "order": state.order, "recipe": dict(recipe)}
        return save(copies, {"progress": json.dumps(head)})

    @classmethod
    def from_bytes(cls, data: bytes, recipe: Mapping[str, str]) -> Self:
        """What to_bytes wrote, on the CPU; ProgressError when it is damaged, or says in what its recipe differs."""
        try:
            length = int.from_bytes(data[:8], "little")
            head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
            found = {"version": head["version"], **head["recipe"]}
            step, order, tensors = int(head["step"]), int(head["order"]), load(data)
            latents = tensors["latents"]
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ProgressError(f"what was saved of the clip cannot be read: {error}; start it at step 0") from None
        wanted = {"version": _VERSION, **recipe}
        differing = [
            f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}"
            for name in {**wanted, **found}
            if found.get(name) != wanted.get(name)
        ]
        if differing:
            raise ProgressError(f"what was saved is another clip's: {', '.join(differing)}; start this one at step 0")
        clean = tuple(tensors[f"clean.{i}"] for i in range(len(tensors)) if f"clean.{i}" in tensors)
        return cls(latents=latents, state=SolverState(step=step, clean=clean, start=tensors.get("start"), order=order))
