"""The command line's view of a running render: one line per row and stage, and one line of progress."""

import shutil
import sys
import threading
import time
from typing import TextIO

from wan_ray.graph.board import Event, GangState, Snapshot
from wan_ray.storage.records import Record

_PAST = {
    "extend": "extended",
    "encode": "encoded",
    "denoise": "denoised",
    "decode": "decoded",
    "publish": "published",
}
_QUIET_INTERVAL_S = 10.0  # between progress lines where nobody watches a terminal


class Display:
    """Writes to a stream; on a terminal the progress line stays at the bottom, elsewhere it comes every 10 s."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._lock = threading.Lock()
        self._num_rows = self._done = self._failed = 0
        self._started = self._last_line = time.monotonic()
        self._inside: dict[str, int] = {}
        self._gangs: list[GangState] = []
        self._epochs: dict[str, int] = {}

    def begin(self, *, num_rows: int, num_done: int) -> None:
        """Say what is to do."""
        self._num_rows = num_rows
        self._started = time.monotonic()
        before = f"; {num_done} have records already" if num_done else ""
        self._line(f"rendering {num_rows} rows{before}" if num_rows else f"nothing to render{before}")

    def tick(self, snapshot: Snapshot) -> None:
        """Print finished stages, what became of workers and gangs, and the progress."""
        for event in snapshot.events:
            self._show_event(event)
        for gang in snapshot.gangs:
            if gang.ranks and gang.epoch > self._epochs.get(gang.worker, 1):
                self._line(f"gang built anew times={gang.epoch - 1} ranks={','.join(gang.ranks)} reason={gang.why}")
                self._epochs[gang.worker] = gang.epoch
        self._inside, self._gangs = snapshot.inside, snapshot.gangs
        if self._live or time.monotonic() - self._last_line >= _QUIET_INTERVAL_S:
            self._show_progress()

    def ended(self, record: Record) -> None:
        """Count a row's end; say why a row was refused."""
        self._done += 1
        self._failed += record.status == "failed"
        if record.error_stage == "read":
            self._line(f"refused row={record.row} id={record.id} error={record.error_message}")

    def waiting(self, num_rows: int) -> None:
        """Say whom the run waits for."""
        self._line(f"waiting for another run over this output, which works on the last {num_rows} rows")

    def close(self) -> None:
        """Leave the terminal's line."""
        if self._live:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _show_event(self, event: Event) -> None:
        if event.died:
            self._line(f"lost the worker that had to {event.stage} id={event.id}")
        elif event.error is not None:
            self._line(f"failed to {event.stage} id={event.id} error={event.error}")
        elif event.seconds is not None:
            self._line(f"{_PAST[event.stage]} id={event.id} seconds={event.seconds:.2f}")

    def _show_progress(self) -> None:
        elapsed_s = time.monotonic() - self._started
        rate = self._done / elapsed_s if elapsed_s > 0 else 0.0
        eta = f"{(self._num_rows - self._done) / rate:.0f} s" if rate else "unknown"
        inside = "  ".join(
            f"{stage} {self._inside.get(stage, 0)}" for stage in _PAST if stage in self._inside or stage != "extend"
        )
        waiting = sum(not gang.ranks for gang in self._gangs)
        gangs = f"  gangs that start or wait for room: {waiting}" if waiting else ""
        steps = ", ".join(f"{gang.id} {gang.step}/{gang.num_steps}" for gang in self._gangs if gang.num_steps)
        text = (
            f"starting workers and loading weights, {elapsed_s:.0f} s{gangs}"
            if not self._inside
            else (
                f"rows {self._done}/{self._num_rows}  failed {self._failed}  {rate * 60:.1f} clips/min  "
                f"ETA {eta}  working: {inside}{gangs}{steps and f'  steps: {steps}'}"
            )
        )
        self._last_line = time.monotonic()
        if not self._live:
            self._line(text)
            return
        with self._lock:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be written over
            self._stream.write(f"\r\033[K{text[:width]}")
            self._stream.flush()

    def _line(self, text: str) -> None:
        with self._lock:
            clear = "\r\033[K" if self._live else ""
            self._stream.write(f"{clear}{text}\n")
            self._stream.flush()
