"""Ending: a run that must end early lets its gangs save what their clips have reached, and only then ends."""

import _thread
import math
import signal
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from wan_ray.config import RenderConfig
from wan_ray.errors import RunStoppedError
from wan_ray.graph.board import BoardHandle
from wan_ray.graph.observer import Observer
from wan_ray.report.rows import STAGES, gpus_held
from wan_ray.storage.records import Record

_POLL_S = 0.5
_SAVE_S = 120.0  # a step of the largest shapes takes most of a minute
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """While the block runs: carries the board's events to the observer, and ends the block when it must.

    SIGINT and SIGTERM end it with KeyboardInterrupt, a second one at once. A limit of the config ends it with
    RunStoppedError. Signals are for the main thread only; elsewhere they change nothing, and the deadline is looked at
    when a row ends.
    """

    def __init__(self, config: RenderConfig, entry: Mapping[str, Any], board: BoardHandle, observer: Observer) -> None:
        self._limits = config.limits
        self._price = (config.hardware.price_per_gpu_hour if config.hardware else None) or 0.0
        self._gpus = {variant: gpus for (_, variant), gpus in gpus_held([entry]).items()}
        self._board = board
        self._observer = observer
        self._num_failed, self._gpu_hours = 0, 0.0
        self._reason: str | None = None
        self._is_main = threading.current_thread() is threading.main_thread()
        self._begun = self._over = False
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="wan-ray-watch", daemon=True)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = {number: signal.signal(number, self._signalled) for number in _SIGNALS}
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        for number, before in self._before.items():
            signal.signal(number, before)
        self._ended.set()
        self._watch.join(timeout=15)
        ray.kill(self._board)
        if kind is KeyboardInterrupt and self._reason is not None:
            raise RunStoppedError(f"the run stopped: {self._reason}; the same command goes on") from None

    def check(self, record: Record) -> None:
        """Count a record of this run; RunStoppedError, once the gangs have saved, when that reaches a limit.

        Rows that break a rule were known before the run began, and do not count.
        """
        if record.variant is None:
            return
        self._num_failed += record.status == "failed"
        gpus = self._gpus.get(record.variant)
        if gpus is not None:
            seconds = zip(STAGES, gpus, strict=True)
            used = sum(record.seconds.get(stage, 0.0) * held for stage, held in seconds)
            self._gpu_hours += 0.0 if math.isnan(used) else used / 3600
        reason = self._reached()
        if reason is not None and not self._begun:
            self._begun = True
            self._save()
            raise RunStoppedError(f"the run stopped: {reason}; the same command goes on")

    def _reached(self) -> str | None:
        """The limit that is reached, if one is."""
        limits, cost = self._limits, self._gpu_hours * self._price
        if limits.max_failures is not None and self._num_failed > limits.max_failures:
            return f"{self._num_failed} rows failed, and limits.max_failures={limits.max_failures}"
        if limits.max_gpu_hours is not None and self._gpu_hours >= limits.max_gpu_hours:
            return f"{self._gpu_hours:.3g} GPU-hours of work reach limits.max_gpu_hours={limits.max_gpu_hours:g}"
        if limits.max_cost is not None and cost >= limits.max_cost:
            return f"work for {cost:.4g} reaches limits.max_cost={limits.max_cost:g}"
        if limits.deadline is not None and datetime.now(UTC) >= limits.deadline:
            return f"limits.deadline={limits.deadline.isoformat()} has come"
        return None

    def _watching(self) -> None:
        while True:
            last = self._ended.wait(_POLL_S)
            try:
                self._observer.tick(ray.get(self._board.fetch.remote(), timeout=10))
            except RayError:  # the run itself reports a lost cluster
                return
            if last:
                return
            if self._is_main and not self._begun and (reason := self._reached()) is not None:
                self._reason = reason
                self._begin()

    def _signalled(self, _: int, __: object) -> None:
        if self._begun:  # by an earlier signal or a limit: all is saved, or this one is not to be waited for
            raise KeyboardInterrupt
        self._begin()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._save_and_interrupt, name="wan-ray-save", daemon=True).start()

    def _save_and_interrupt(self) -> None:
        self._save()
        if not self._over:
            _thread.interrupt_main(signal.SIGINT)

    def _save(self) -> None:
        """Return when no gang is inside a clip any more; what they had is stored then."""
        try:
            ray.get(self._board.stop.remote())
            end = time.monotonic() + _SAVE_S
            while not self._over and time.monotonic() < end and ray.get(self._board.num_stepping.remote()):
                time.sleep(_POLL_S)
        except RayError:  # the cluster is lost, or a second signal was quicker
            return
