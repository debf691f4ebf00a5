"""Rank: one process of a gang. It holds its part of the DiT and does its part of every clip."""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from wan_ray.config import GangSection, ModelSection
from wan_ray.errors import ProgressError
from wan_ray.graph.gang import Beat, Place
from wan_ray.graph.operator import attempted, without_tensors
from wan_ray.stages.items import Item, Row

if TYPE_CHECKING:
    from wan_ray.stages.denoise import DenoiseStage

logger = logging.getLogger(__name__)

_NOTICE_S = 25.0  # Kubernetes sends SIGKILL 30 s after SIGTERM
_FORMER_S = 30.0


class Rank:
    """Made by a Gang, ended by it from outside. A rank that is sent SIGTERM asks for a stop, and ends by itself."""

    def __init__(self, rank: int, *, model: ModelSection, gang: GangSection) -> None:
        self._rank = rank
        self._model = model
        self._gang = gang
        self._stage: DenoiseStage | None = None
        self._kept: list[Any] = []
        self._step = self._num_steps = self._saves = 0
        self._saved: bytes | None = None
        self._why: str | None = None
        self._notice: str | None = None
        signal.signal(signal.SIGTERM, self._take_notice)

    def place(self) -> Place:
        """Where this is."""
        node = ray.get_runtime_context().get_node_id()
        return Place(node=node, host=ray.util.get_node_ip_address(), pid=os.getpid())

    def reserve(self) -> str:
        """The address where the ranks are to meet; "" for one that is alone."""
        if self._gang.degrees.world_size == 1:
            return ""
        # Imported here and below: torch is for this process, not for the leader's.
        from wan_ray.parallel.process_group import reserve_address

        reservation = reserve_address(ray.util.get_node_ip_address(), timeout_s=self._gang.timeout_s)
        self._kept.append(reservation)
        return reservation.address

    def load(self, address: str, former: Sequence[Place]) -> None:
        """Meet the others and load the model, once the former ranks' processes, which held the GPU, have ended."""
        from wan_ray.parallel.process_group import open_groups
        from wan_ray.stages.loader import StageLoader

        node = ray.get_runtime_context().get_node_id()
        wait_for_end([place.pid for place in former if place.node == node], timeout_s=_FORMER_S)
        loader, groups = StageLoader(model=self._model), None
        if address:
            groups = open_groups(
                self._gang.degrees,
                rank=self._rank,
                address=address,
                timeout_s=self._gang.timeout_s,
                device=loader.device,
            )
            self._kept.append(groups)
        self._stage = loader.denoise(groups)

    def run(self, row: Row, resume: bytes | None) -> Row | None:
        """The denoised row, from rank 0. A rank that is alone turns an error into a failed row: it can go on."""
        self._step = self._num_steps = self._saves = 0
        self._saved = self._why = None
        item = Item.from_row(row)
        if self._gang.degrees.world_size > 1:  # an error must end all ranks: the others wait for this one
            done = self._denoised(item, resume)
            return done.to_row() if self._rank == 0 else None
        done_row = attempted("denoise", item, partial(self._row, item, resume))
        if without_tensors(done_row).failure is not None:
            self._check_device()
        return done_row

    def beat(self) -> Beat:
        """How far this is."""
        return Beat(step=self._step, num_steps=self._num_steps, saves=self._saves, notice=self._notice)

    def saved(self) -> bytes | None:
        """What was last saved of the clip."""
        return self._saved

    def stop(self, why: str) -> None:
        """Have all ranks raise ClipStoppedError out of run at the next step boundary."""
        self._why = why

    def _row(self, item: Item, resume: bytes | None) -> Row:
        return self._denoised(item, resume).to_row()

    def _denoised(self, item: Item, resume: bytes | None) -> Item:
        from wan_ray.stages.pause import Pause

        assert self._stage is not None
        pause = Pause(save=self._save, save_every_s=self._gang.save_every_s, should_stop=self._should_stop)
        try:
            return self._stage(item, self._on_step, resume=resume, pause=pause)
        except ProgressError as error:
            logger.warning("starting at step 0 request_id=%s reason=%s", item.id, error)
            return self._stage(item, self._on_step, pause=pause)

    def _on_step(self, done: int, total: int) -> None:
        self._step, self._num_steps = done, total

    def _save(self, data: bytes) -> None:
        self._saved = data
        self._saves += 1

    def _should_stop(self) -> str | None:
        return self._why or self._notice

    def _check_device(self) -> None:
        """Raise what the GPU raises now: after some errors every later call on it fails, and the process must end."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _take_notice(self, number: int, _: object) -> None:
        self._notice = f"rank {self._rank} was sent {signal.Signals(number).name}"
        end = threading.Timer(_NOTICE_S, os._exit, [1])
        end.daemon = True
        end.start()


def wait_for_end(pids: Sequence[int], *, timeout_s: float) -> None:
    """Return when none of these processes of this machine is left, or time is up."""
    end = time.monotonic() + timeout_s
    while any(_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
