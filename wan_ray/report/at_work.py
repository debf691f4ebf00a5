"""At work: which part of a run's time the workers of each stage had work, and which stage all others waited for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wan_ray.errors import ConfigError
from wan_ray.report.rows import STAGES
from wan_ray.storage.runs import RunEntry, config_of

_ALWAYS = 0.9  # of the time: a stage that is at work as much has no time to give


@dataclass(frozen=True, kw_only=True)
class StageAtWork:
    """workers: as many as the run may have. share: of their time, from the first row's start to the last record."""

    stage: str
    workers: int
    share: float


@dataclass(frozen=True, kw_only=True)
class AtWork:
    """Of one run. start_up_s: from its start to that of its first row's work; over_s: from there to the last record."""

    start_up_s: float
    over_s: float
    stages: Sequence[StageAtWork]

    @property
    def slowest(self) -> StageAtWork:
        """The stage that was at work most."""
        return max(self.stages, key=lambda stage: stage.share)

    @property
    def verdict(self) -> str:
        """What the rest of the time went to."""
        slowest = self.slowest
        if slowest.share >= _ALWAYS:
            return f"{slowest.stage} bounds the run: the other stages wait for it; more of its workers would shorten it"
        return (
            f"no stage was at work all the time: the workers of {slowest.stage}, which was most, were loading, lost, "
            f"fewer than {slowest.workers}, or out of rows at the end"
        )


def at_work(run: RunEntry, table: np.ndarray, *, started_s: float) -> AtWork | None:
    """Of the run's records in dtype RECORD, in the order of time; None without one that had work, or another version's
    config."""
    try:
        stages = config_of(run).stages
    except ConfigError:
        return None
    seconds = np.nan_to_num(table["seconds"].astype(np.float64))
    worked = seconds.sum(axis=1) > 0
    if not worked.any():
        return None
    starts = table["time_s"][worked] - seconds[worked].sum(axis=1)
    first, last = float(starts.min()), float(table["time_s"][worked].max())
    totals = seconds.sum(axis=0)
    return AtWork(
        start_up_s=max(first - started_s, 0.0),
        over_s=last - first,
        stages=[
            StageAtWork(stage=name, workers=workers, share=min(float(total) / (workers * (last - first)), 1.0))
            for name, total in zip(STAGES, totals, strict=True)
            if total and (workers := getattr(stages, name).replicas.max)
        ],
    )
