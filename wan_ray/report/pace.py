"""Pace: how fast records come and what a clip costs, of a whole run and lately; when a run will end."""

from dataclasses import dataclass

import numpy as np

# Lately: ten minutes, or the time of ten clips where that is longer, so that workers in step do not show as waves.
_RECENT_S = 600.0
_RECENT_CLIPS = 10


_BIN_WIDTHS_S = [
    1,
    2,
    5,
    10,
    30,
    *(60 * n for n in (1, 2, 5, 10, 30)),
    *(3600 * n for n in (1, 2, 3, 6, 12, 24, 48, 168)),
]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What happened in over_s seconds: rows that ended, without those refused at once, and clips among them.

    The means are over these clips, in seconds of work; None without a clip. gpu_seconds_per_clip is None too where no
    worker holds a GPU, or a run does not say how many.
    """

    over_s: float
    rows: int
    clips: int
    seconds_per_clip: float | None
    gpu_seconds_per_clip: float | None

    @property
    def clips_per_hour(self) -> float | None:
        """None for no time at all."""
        return 3600 * self.clips / self.over_s if self.over_s > 0 else None


@dataclass(frozen=True, kw_only=True)
class RunPace:
    """Of all records since a run began: whole, and recent where the run is long enough to tell them apart.

    last_s: Unix time of the last record. end_s: when the last row will have one if it goes on as lately, None when that
    cannot be told.
    """

    whole: Pace
    recent: Pace | None
    last_s: float
    end_s: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """Equal steps of time from start_s: clips and failures in each, and what a clip of it cost, NaN without one."""

    start_s: float
    step_s: float
    clips: np.ndarray
    failures: np.ndarray
    seconds_per_clip: np.ndarray
    gpu_seconds_per_clip: np.ndarray


def pace(table: np.ndarray, over_s: float) -> Pace:
    """The pace of these records, in dtype RECORD."""
    ended = table[~table["refused"]]
    clips = ended[ended["ok"]]
    gpu_seconds = clips["gpu_seconds"]
    gpu_seconds = gpu_seconds[np.isfinite(gpu_seconds)]
    return Pace(
        over_s=over_s,
        rows=len(ended),
        clips=len(clips),
        seconds_per_clip=float(np.nansum(clips["seconds"], axis=1).mean()) if len(clips) else None,
        gpu_seconds_per_clip=float(gpu_seconds.mean()) if gpu_seconds.any() else None,
    )


def records_since(table: np.ndarray, started_s: float) -> np.ndarray:
    """Those that a run, or another beside it, has made since it began."""
    return table[np.searchsorted(table["time_s"], started_s) :]


def run_pace(table: np.ndarray, *, started_s: float, num_pending: int | None) -> RunPace | None:
    """The pace since a run began with num_pending rows to do; None before its first record.

    The index trails the records: times count to its last row, not to now.
    """
    since = records_since(table, started_s)
    if not len(since):
        return None
    last_s = float(since["time_s"][-1])
    whole = pace(since, max(last_s - started_s, 0.0))
    window_s = max(_RECENT_S, _RECENT_CLIPS * (whole.seconds_per_clip or 0.0))
    recent = None
    if whole.over_s > 2 * window_s and len(since) > 1:
        first = max(int(np.searchsorted(since["time_s"], last_s - window_s, side="right")), 1)
        recent = pace(since[first:], last_s - float(since["time_s"][first - 1]))  # whole steps from record to record
    lately = recent or whole
    end_s = None
    if num_pending is not None and lately.rows and lately.over_s:
        end_s = last_s + max(num_pending - len(since), 0) * lately.over_s / lately.rows
    return RunPace(whole=whole, recent=recent, last_s=last_s, end_s=end_s)


def timeline(table: np.ndarray, *, max_steps: int) -> Timeline:
    """From the first to the last record, without rows refused at once; a step is a round number of seconds or hours."""
    ended = table[~table["refused"]]
    times = ended["time_s"]
    first, last = (times[0], times[-1]) if len(times) else (0.0, 0.0)
    step_s = next((s for s in _BIN_WIDTHS_S if (last - first) / s < max_steps - 1), None)
    step_s = step_s or _BIN_WIDTHS_S[-1] * np.ceil((last - first) / _BIN_WIDTHS_S[-1] / (max_steps - 1))
    start_s = first // step_s * step_s
    num_steps = int((last - start_s) // step_s) + 1
    step_of = ((times - start_s) // step_s).astype(np.int64)

    def summed(which: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(step_of[which], weights=values[which], minlength=num_steps)

    ok, gpu_seconds = ended["ok"], ended["gpu_seconds"]
    told = ok & np.isfinite(gpu_seconds)
    ones = np.ones(len(ended))
    with np.errstate(invalid="ignore"):  # 0/0 is the NaN of a step without a clip
        return Timeline(
            start_s=float(start_s),
            step_s=float(step_s),
            clips=summed(ok, ones),
            failures=summed(~ok, ones),
            seconds_per_clip=summed(ok, np.nansum(ended["seconds"], axis=1)) / summed(ok, ones),
            gpu_seconds_per_clip=summed(told, gpu_seconds) / summed(told, ones),
        )
