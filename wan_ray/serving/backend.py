"""Backend: what the routes ask of the queue (queue.py), which may run in another process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from wan_ray.serving.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Live:
    """A job that has not ended. ahead: jobs that run before it. step, num_steps: of its denoising, once it began."""

    status: Literal["queued", "in_progress"]
    ahead: int = 0
    step: int = 0
    num_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class QueueView:
    """What the queue does now. ended: jobs by outcome ("ok", "failed") since the queue started."""

    queued: int
    running: int
    slots: int
    ended: Mapping[str, int]


class Backend(Protocol):
    """Any of these raises QueueDownError while the queue's process is being replaced; what is stored stays true."""

    async def admit(self, owner: str) -> None:
        """Keep a place for another job of this owner, before anything is stored; QueueFullError when there is none."""

    async def release(self, owner: str) -> None:
        """Give the place back: the job waits by now, or nothing came of it."""

    async def submit(self, job: Job) -> None:
        """Have a stored job run."""

    async def live(self, job_ids: Sequence[str]) -> Mapping[str, Live]:
        """Those of the jobs that are queued or running; the others have ended, or are not known."""

    async def cancel(self, job: Job, why: str) -> None:
        """End the job with a failed record of type "CancelledError", unless it has ended. Its gang stops in a step."""

    async def delete(self, job: Job) -> None:
        """Cancel the job, and remove all that belongs to it."""

    async def view(self) -> QueueView:
        """What the queue does now."""
