"""A training run as numbered steps that can stop anywhere and go on as if it had not."""

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """num_steps, and the rate of learning over them: warmed up, held, and let down to nothing along a cosine."""

    num_steps: int
    peak: float = 1.0
    warm_up: int = 50
    hold: float = 0.0  # part of the steps before the cosine begins

    def rate(self, step: int) -> float:
        """Of the step that is about to be taken."""
        done = max(0.0, step / self.num_steps - self.hold) / (1 - self.hold)
        return self.peak * min(1.0, (step + 1) / self.warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(kw_only=True)
class Run:
    """What one training run keeps: modules and optimizers by name, and the number of steps taken.

    A step draws all its chances from the step's number, so nothing else needs keeping.
    """

    file: Path
    parts: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    steps_done: int = 0
    seconds: float = 0.0

    def load_(self) -> None:
        """Go on from the file, if there is one."""
        if not self.file.exists():
            return
        state = torch.load(self.file, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.steps_done, self.seconds = state["steps_done"], state["seconds"]

    def save(self) -> None:
        """Replace the file, whole or not at all."""
        partial = self.file.with_suffix(".partial")
        torch.save(
            {
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                "steps_done": self.steps_done,
                "seconds": self.seconds,
            },
            partial,
        )
        partial.replace(self.file)


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the device has instructions for it; a CPU without takes six times as long in it, and stays as is.

    Used as a context.
    """
    native = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


class Stopped(BaseException):
    """SIGTERM came: the run is saved and ends."""


def train_(
    run: Run,
    schedule: Schedule,
    loss_of: Callable[[int], Tensor],
    *,
    after_step: Callable[[int], None] = lambda step: None,
    on_save: Callable[[], None] = lambda: None,
    save_every_s: float = 240,
) -> None:
    """Take the steps that are left, saving now and then; on SIGTERM finish the step, save and raise Stopped.

    loss_of(step) draws the step's batch and returns its loss. An optimizer's groups learn at schedule x their "scale".
    """
    stopping = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    previous = signal.signal(signal.SIGTERM, stop)
    saved_at = began = time.monotonic()
    mean_loss, seconds_before = None, run.seconds
    try:
        while run.steps_done < schedule.num_steps:
            step = run.steps_done
            for optimizer in run.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = schedule.rate(step) * group["scale"]
                optimizer.zero_grad()
            loss = loss_of(step)
            loss.backward()
            for part in run.parts.values():
                nn.utils.clip_grad_norm_([p for p in part.parameters() if p.grad is not None], 1.0)
            for optimizer in run.optimizers.values():
                optimizer.step()
            after_step(step)
            run.steps_done += 1
            run.seconds = seconds_before + time.monotonic() - began
            mean_loss = loss.item() if mean_loss is None else 0.98 * mean_loss + 0.02 * loss.item()
            if step % 25 == 0:
                logger.info("step=%d loss=%.4f seconds=%.0f", step, mean_loss, run.seconds)
            if stopping:
                run.save()
                raise Stopped
            if time.monotonic() - saved_at > save_every_s:
                run.save()
                on_save()
                saved_at = time.monotonic()
        run.save()
    finally:
        signal.signal(signal.SIGTERM, previous)
