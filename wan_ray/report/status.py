"""Status: how far an output folder is, also while a run writes to it, by its index and runs. No record is read."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import numpy as np

from wan_ray.errors import StorageError
from wan_ray.report.at_work import AtWork, at_work
from wan_ray.report.counts import MAX_LABEL_VALUES, Counts, LabelCounts, count
from wan_ray.report.figures import duration, figure, moment
from wan_ray.report.pace import Pace, RunPace, pace, records_since, run_pace
from wan_ray.report.rows import Rows, gpus_held, read_rows, while_parts_stay
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RUNS
from wan_ray.storage.patience import Patience
from wan_ray.storage.runs import RunEntry, living_runs, read_runs

_PATIENCE_S = 20.0  # someone waits for this
_SHOWN_CAUSES = 20
_SHOWN_VALUES = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # ids and labels are anything, also what moves a terminal's cursor


@dataclass(frozen=True, kw_only=True, eq=False)
class Status:
    """rows: one entry per record. all_runs: means over every record, in no time that could be told.

    pace, at_work: of the last run, None before its first record. at_s: Unix time of this look. is_running: whether the
    last run is at work now.
    """

    output: str
    at_s: float
    runs: Sequence[RunEntry]
    rows: Rows
    counts: Counts
    pace: RunPace | None
    at_work: AtWork | None
    all_runs: Pace
    is_running: bool

    @property
    def num_ok(self) -> int:
        return int(self.rows.table["ok"].sum())

    @property
    def num_failed(self) -> int:
        return len(self.rows.table) - self.num_ok

    @property
    def gpu_hours(self) -> float | None:
        """Of work on the records there are; None where no worker held a GPU, or no run says how many."""
        return float(np.nansum(self.rows.table["gpu_seconds"])) / 3600 or None

    @property
    def end_s(self) -> float | None:
        """When the run will end, if one is going on and that can be told."""
        return self.pace.end_s if self.pace and self.is_running else None


def read_status(output: str) -> Status:
    """How far the output folder is; StorageError when no run ever wrote there."""
    store = Store(output, patience=Patience(total_s=_PATIENCE_S))
    runs = read_runs(store)
    if not runs:
        raise StorageError(f"{store.location(RUNS)!r} holds nothing: no run has written there")

    def read(parts: Sequence[str]) -> tuple[Rows, Counts]:
        rows = read_rows(store, parts, gpus_held(runs))
        return rows, count(store, rows)

    rows, counts = while_parts_stay(store, read)
    pending, started = runs[-1].get("num_pending"), started_s(runs[-1])
    return Status(
        output=store.location(""),
        at_s=time.time(),
        runs=runs,
        rows=rows,
        counts=counts,
        pace=run_pace(
            rows.table,
            started_s=started,
            num_pending=pending if isinstance(pending, int) else None,
        ),
        at_work=at_work(runs[-1], records_since(rows.table, started), started_s=started),
        all_runs=pace(rows.table, 0.0),
        is_running=runs[-1]["status"] == "running" and runs[-1]["run_id"] in living_runs(store),
    )


def started_s(run: RunEntry) -> float:
    """When the run began, as Unix time."""
    return datetime.fromisoformat(str(run["started_at"])).timestamp()


def progress(status: Status) -> str:
    """One sentence on the last run."""
    run, started = status.runs[-1], started_s(status.runs[-1])
    if not status.is_running and run["status"] == "running":
        return f"last run {run['run_id']}: died, started {moment(started)}; the same render command goes on from here"
    if not status.is_running:
        return f"last run {run['run_id']}: {run['status']}, started {moment(started)}"
    since = f"run {run['run_id']}: running for {duration(status.at_s - started)}"
    if status.pace is None:
        return f"{since}, no record yet"
    since += f", last record {duration(max(status.at_s - status.pace.last_s, 0))} ago"
    if status.end_s is None:
        return since
    return f"{since}, {duration(max(status.end_s - status.at_s, 0))} to go, until {moment(status.end_s)}"


def paces(status: Status) -> list[tuple[str, Pace]]:
    """What there is to compare, with names: lately, the last run, and all runs where there are several."""
    named = []
    if status.pace:
        if status.pace.recent:
            named.append((f"last {duration(status.pace.recent.over_s)}", status.pace.recent))
        named.append(("this run" if status.is_running else "last run", status.pace.whole))
    if len(status.runs) > 1 or not named:
        named.append(("all runs", status.all_runs))
    return named


def as_text(status: Status) -> str:
    """For a terminal; bounded, however many labels and causes there are."""
    return "\n".join(_CONTROL.sub(" ", line) for line in _lines(status))


def as_json(status: Status) -> str:
    """For scripts: one object; times are Unix seconds."""
    run = status.runs[-1]
    counted = {
        "output": status.output,
        "run": {name: run[name] for name in ("run_id", "status", "started_at", "num_rows")},
        "is_running": status.is_running,
        "records": len(status.rows.table),
        "ok": status.num_ok,
        "failed": status.num_failed,
        "gpu_hours": status.gpu_hours,
        "at": status.at_s,
        "last_record_at": status.pace and status.pace.last_s,
        "ends_at": status.end_s,
        "at_work": status.at_work and asdict(status.at_work),
        "pace": {name: {**asdict(p), "clips_per_hour": p.clips_per_hour} for name, p in _named_paces(status)},
        "labels": {key: _label_json(values) for key, values in status.counts.labels.items()},
        "failures": [
            {**{k: v for k, v in asdict(cause).items() if k not in ("shared", "varies")}, "text": cause.text}
            for cause in status.counts.causes
        ],
    }
    return json.dumps(counted, ensure_ascii=False, indent=1)


def _named_paces(status: Status) -> Iterator[tuple[str, Pace]]:
    if status.pace and status.pace.recent:
        yield "recent", status.pace.recent
    if status.pace:
        yield "run", status.pace.whole
    yield "all_runs", status.all_runs


def _label_json(values: LabelCounts) -> object:
    if values.is_open:
        return None
    return {value: {"ok": ok, "failed": failed} for value, ok, failed in values.most_common()}


def _lines(status: Status) -> Iterator[str]:
    yield progress(status)
    yield (
        f"{len(status.rows.table)} records: {status.num_ok} ok, {status.num_failed} failed; "
        f"the last run's manifest has {status.runs[-1]['num_rows']} rows"
    )
    yield ""
    yield f"{'':<18}{'clips/hour':>12}{'s/clip':>10}{'GPU-s/clip':>12}"
    for name, of in paces(status):
        cells = (of.clips_per_hour, of.seconds_per_clip, of.gpu_seconds_per_clip)
        yield "{:<18}{:>12}{:>10}{:>12}".format(name, *map(figure, cells))
    if status.at_work:
        yield from _at_work(status.at_work)
    if status.counts.labels:
        yield from ("", "labels")
    for key, values in status.counts.labels.items():
        yield f"  {key}: {_values(values)}"
    if status.counts.causes:
        yield from ("", "failures")
    for cause in status.counts.causes[:_SHOWN_CAUSES]:
        yield f"{cause.count:>8} x {cause.type} at {cause.stage}: {cause.text}"
        if cause.varies:
            yield f"{'':>11}e.g. row {cause.row}, id {cause.id}: {cause.message}"
    if len(status.counts.causes) > _SHOWN_CAUSES:
        yield f"{'':>11}and {len(status.counts.causes) - _SHOWN_CAUSES} more causes"


def _at_work(found: AtWork) -> Iterator[str]:
    workers = ", ".join(f"{stage.stage} {stage.share:.0%} of {stage.workers}" for stage in found.stages)
    yield ""
    yield f"workers at work in the {duration(found.over_s)} after {duration(found.start_up_s)} of start-up: {workers}"
    yield found.verdict


def _values(values: LabelCounts) -> str:
    if values.is_open:
        return f"more than {MAX_LABEL_VALUES} values"
    told = values.most_common()
    texts = [f"{value} {ok + failed}" + (f" ({failed} failed)" if failed else "") for value, ok, failed in told]
    more = len(texts) - _SHOWN_VALUES
    return ", ".join(texts[:_SHOWN_VALUES]) + (f" and {more} more" if more > 0 else "")
