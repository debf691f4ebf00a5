"""One run over a manifest: what is left to do is done on the cluster, and shared with other runs over the output."""

import random
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from wan_ray.config import ModelSection, RenderConfig
from wan_ray.costs.check import check_layout
from wan_ray.errors import ConfigError, StorageError
from wan_ray.graph.board import BoardHandle
from wan_ray.graph.cluster import connected
from wan_ray.graph.ending import Ending
from wan_ray.graph.metrics import RunMetrics
from wan_ray.graph.observer import Observer
from wan_ray.graph.offline import new_board, new_run_id, rendered, stopped_by_ray
from wan_ray.graph.placement import check_fit, check_weights
from wan_ray.stages.agenda import Again, attempts_due
from wan_ray.stages.planning import Plan
from wan_ray.stages.publish import PublishStage, package_versions
from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.index import Indexed, IndexWriter, RenderedWith, indexed_records, rendered_with
from wan_ray.storage.patience import Patience
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import RunEntry, alive, config_of, living_runs, read_runs, write_run
from wan_ray.wording import masked

_LOOK_S = 3.0  # between looks at what other runs have done
_BRIEF = Patience(total_s=30.0)  # for the last words of a run that was stopped, perhaps by its very store
_TRIED = 64  # rows whose claims are tried at each look


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended. ok and failed count the manifest's rows by their records, this run's or others'."""

    run_id: str
    ok: int
    failed: int
    rendered: int
    skipped: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a run has to do. due: by row number, the attempt to render; 0 for a row that is left alone."""

    config: RenderConfig
    plan: Plan
    due: "array[int]"
    store: Store
    run_id: str

    def left(self) -> dict[str, int]:
        """Record names and row numbers of what is to be rendered."""
        plan = self.plan
        return {name: row for row, name in enumerate(plan.names) if self.due[row] and plan.bucket_of_row[row]}


def render(config: RenderConfig, plan: Plan, *, observer: Observer, again: Again | None = None) -> Summary:
    """Render every planned row that has no record yet, and those that are to be rendered again.

    Ray is connected to only if there is one. Runs over one output at once share the rows, and each ends when all have
    a record. ConfigError when a layout cannot work, the cluster is too small, the checkpoint is wrong, a row has
    changed, or one output would mix two models. RunStoppedError when a worker could not start, a limit was reached or
    the cluster was lost, StorageError when the store failed: what has a record stays, and the same call goes on.
    """
    config = check_layout(config, plan.buckets)
    if config.output is None:
        raise ConfigError("no output: set output in the config or give --output")
    started, store, run_id = time.monotonic(), Store(config.output), new_run_id()
    store.check()
    with alive(store, run_id), IndexWriter(store, run_id, plan.extra_columns) as index:
        due = attempts_due(plan, _on_record(store, index), again or Again())
        work = _Work(config=config, plan=plan, due=due, store=store, run_id=run_id)
        rendered = sorted(rendered_with(store))
        _check_same_quantization(config, rendered)
        if not work.left():
            return _carried_out(work, None, observer, index, started)
        with connected(config.ray_address):
            check_fit(config)
            _check_same_models(config, store, rendered, check_weights(config))
            return _carried_out(work, new_board(), RunMetrics(config, observer), index, started)


def _carried_out(
    work: _Work, board: BoardHandle | None, observer: Observer, index: IndexWriter, started: float
) -> Summary:
    """Do the work, and keep the run's entry. A board, where there are rows to render."""
    num_rows, num_due = len(work.plan.names), sum(map(bool, work.due))
    entry: dict[str, Any] = {
        "run_id": work.run_id,
        "started_at": _now(),
        "num_rows": num_rows,
        "num_pending": num_due,
        "config": masked(work.config.model_dump(mode="json")),
        "versions": package_versions(),
    }
    write_run(work.store, {**entry, "status": "running"})
    observer.begin(num_rows=num_due, num_done=num_rows - num_due)
    num_rendered = 0

    def ended(status: str, store: Store) -> Summary:
        statuses = _on_record(store, index)
        index.flush()
        ends = [statuses[name].status for name in work.plan.names if name in statuses]
        summary = Summary(
            run_id=work.run_id,
            ok=ends.count("ok"),
            failed=ends.count("failed"),
            rendered=num_rendered,
            skipped=num_rows - num_due,
            seconds=time.monotonic() - started,
        )
        write_run(store, {**entry, "status": status, "ended_at": _now(), "counts": asdict(summary)})
        return summary

    try:
        with stopped_by_ray(), Ending(work.config, entry, board, observer) if board else nullcontext() as ending:
            for record in _new_records(work, board, observer):
                observer.ended(record)
                if record.run_id == work.run_id:
                    index.append(record)
                    num_rendered += record.status == "ok"
                    if ending is not None:
                        ending.check(record)
    except BaseException:
        with suppress(StorageError):
            ended("stopped", Store(work.config.output or "", patience=_BRIEF))
        raise
    return ended("finished", work.store)


def _on_record(store: Store, index: IndexWriter) -> Mapping[str, Indexed]:
    """The last attempt of every record; those that are in no index, and of no run at work, are put into this one."""
    index.flush()
    found = indexed_records(store)
    latest = RecordStore(store).latest()
    missing = {name: last for name, last in latest.items() if name not in found or found[name].attempt < last}
    living = living_runs(store) if missing else set()
    for record in RecordStore(store).read_all(dict(sorted(missing.items()))):
        if record.run_id not in living:
            index.append(record)
        found[record.name] = Indexed(record.attempt, record.status, record.content, record.error_type)
    return found


def _check_same_quantization(config: RenderConfig, rendered: Sequence[RenderedWith]) -> None:
    """Raise ConfigError when clips that are there had other linear layers, also where no row is left to render."""
    wanted = {section.variant: section.quantization for section in config.all_models}
    for before in rendered:
        then, now = before.quantization or "none", wanted.get(before.variant)
        if now not in (None, then):
            raise ConfigError(
                f"{before.variant}: the clips of run {before.run_id} were rendered with quantization {then}, not "
                f"{now}; one output would mix both: use another output, or model.quantization={then}"
            )


def _check_same_models(
    config: RenderConfig, store: Store, rendered: Sequence[RenderedWith], weights: Mapping[str, str]
) -> None:
    """Raise ConfigError when clips that are there were rendered with other weights or in another dtype.

    Where the weights cannot be seen from here, by the path or URL they came from.
    """
    models = {section.variant: section for section in config.all_models}
    runs = {run["run_id"]: run for run in read_runs(store)}
    for before in rendered:
        now, then = models.get(before.variant), _model_of(runs.get(before.run_id), before.variant)
        weights_now = weights.get(before.variant, "")
        if now is None:
            continue
        if weights_now and before.transformer and weights_now != before.transformer:
            place = "" if then is None else f" of {_source(then)!r}"
            differs = f"other weights{place} (transformer {before.transformer[:8]}, now {weights_now[:8]})"
        elif not weights_now and then is not None and _source(then) != _source(now):
            differs = f"{_source(then)!r}, and it cannot be seen from here whether {_source(now)!r} is the same"
        elif now.dtype != "auto" and before.dtype and before.dtype != now.dtype:
            differs = f"dtype {before.dtype}, not {now.dtype}"
        else:
            continue
        raise ConfigError(
            f"{before.variant}: the clips of run {before.run_id} were rendered with {differs}; one output would mix "
            "both: use another output, or the same model"
        )


def _model_of(run: RunEntry | None, variant: str) -> ModelSection | None:
    """The model of that variant in a run's config; None where the run or its config is of another version."""
    try:
        models = config_of(run).all_models if run else ()
    except ConfigError:
        return None
    return next((section for section in models if section.variant == variant), None)


def _source(model: ModelSection) -> str:
    adapters = "".join(f" + {adapter.scale:g} x {adapter.path}" for adapter in model.adapters)
    return f"{model.checkpoint}{adapters}"


def _new_records(work: _Work, board: BoardHandle | None, observer: Observer) -> Iterator[Record]:
    """Commit the refused rows, then render the others, model by model; records in the order they end."""
    config, plan = work.config, work.plan
    assert config.output is not None
    refused = [item for item in plan.refused if item.row is not None and work.due[item.row]]
    yield from map(PublishStage(config.output, run_id=work.run_id), refused)
    left = work.left()
    variants = [bucket.variant for bucket in plan.buckets]
    while left and board is not None:
        for model in config.all_models:
            mine = array("I", bytes(4 * len(plan.names)))
            for row in left.values():
                bucket = plan.bucket_of_row[row]
                mine[row] = bucket if variants[bucket - 1] == model.variant else 0
            if any(mine):
                for record in rendered(config, model, board, work.run_id, bucket_of_row=mine, attempt_of_row=work.due):
                    left.pop(record.name, None)
                    yield record
        yield from _of_others(work, left, observer)


def _of_others(work: _Work, left: dict[str, int], observer: Observer) -> Iterator[Record]:
    """Records that other runs make of the rows left, until one of these rows is free; takes them out of left."""
    records, claims = RecordStore(work.store), Claims(work.store, work.run_id)
    told = False
    while left:
        latest = records.latest()
        ended = {name: work.due[row] for name, row in left.items() if latest.get(name, 0) >= work.due[row]}
        for record in records.read_all(ended):
            del left[record.name]
            yield record
        tried = random.sample(sorted(left), min(_TRIED, len(left)))
        if not left or any(claims.take(name, work.due[left[name]]) for name in tried):
            return
        if not told:
            observer.waiting(len(left))
            told = True
        time.sleep(_LOOK_S)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
