"""The path on Ray Data: render() turns a manifest into a dataset of clips; build_processor() is its library face."""

import re
import secrets
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from wan_ray.config import ModelSection, RenderConfig, StageSection
from wan_ray.errors import ConfigError, RunStoppedError
from wan_ray.graph.board import Board, Event
from wan_ray.graph.cluster import connected
from wan_ray.graph.operator import (
    BoardHandle,
    Decode,
    Denoise,
    Encode,
    Publish,
    UserRow,
    as_result,
    read_any,
    read_manifest,
)
from wan_ray.graph.placement import check_fit, check_weights
from wan_ray.stages.items import Item
from wan_ray.stages.publish import PublishStage, package_versions
from wan_ray.stages.read import Plan, open_manifest
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter, indexed_statuses
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import write_run

UserMap = Callable[[UserRow], UserRow]
_READ_CPUS = 0.05
_POLL_S = 0.5


class Observer(Protocol):
    """Who watches a run: the command line's display, or nobody."""

    def begin(self, *, num_rows: int, num_done: int) -> None:
        """The run is about to render num_rows; num_done others have records already."""

    def tick(self, events: list[Event], inside: dict[str, int]) -> None:
        """Called about twice a second from a thread: what happened, and how many items are inside each stage."""

    def ended(self, record: Record) -> None:
        """A row has its record."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended. ok and failed count the manifest's rows by their records, this run's or earlier ones'."""

    run_id: str
    ok: int
    failed: int
    rendered: int
    skipped: int
    seconds: float


def render(config: RenderConfig, plan: Plan, *, observer: Observer) -> Summary:
    """Render every planned row that has no record yet; Ray is connected to only if there is one.

    ConfigError when the cluster is too small or the checkpoint is wrong. RunStoppedError when a worker could not
    start, the store failed or the cluster was lost: what has a record stays, and the same call goes on from there.
    """
    if config.output is None:
        raise ConfigError("no output: set output in the config or give --output")
    started = time.monotonic()
    store = Store(config.output)
    known = RecordStore(store).names()
    buckets = zip(plan.names, plan.bucket_of_row, strict=True)
    pending = array("I", (0 if name in known else bucket for name, bucket in buckets))
    skipped = sum(name in known for name in plan.names)
    with _cluster_for(config) if any(pending) else nullcontext():
        run_id = _new_run_id()
        entry = _run_entry(config, run_id, num_rows=len(plan.names))
        write_run(store, {**entry, "status": "running"})
        observer.begin(num_rows=len(plan.names) - skipped, num_done=skipped)
        status, num_rendered = "stopped", 0
        try:
            with IndexWriter(store, run_id, plan.extra_columns) as index:
                # A crash may have come between a record and its index row.
                for record in RecordStore(store).read_all(sorted(known - indexed_statuses(store).keys())):
                    index.append(record)
                new_refused = [item for item in plan.refused if item.name not in known]
                for record in _new_records(
                    config, plan, refused=new_refused, pending=pending, run_id=run_id, observer=observer
                ):
                    index.append(record)
                    observer.ended(record)
                    num_rendered += record.status == "ok"
            status = "finished"
        finally:
            statuses = indexed_statuses(store)
            ends = [statuses[name] for name in plan.names if name in statuses]
            summary = Summary(
                run_id=run_id,
                ok=ends.count("ok"),
                failed=ends.count("failed"),
                rendered=num_rendered,
                skipped=skipped,
                seconds=time.monotonic() - started,
            )
            write_run(store, {**entry, "status": status, "ended_at": _now(), "counts": asdict(summary)})
    return summary


@contextmanager
def _cluster_for(config: RenderConfig) -> Iterator[None]:
    with connected(config.ray_address):
        check_fit(config)
        check_weights(config)
        yield


def build_processor(
    config: RenderConfig, preprocess: UserMap | None = None, postprocess: UserMap | None = None
) -> Callable[[Dataset], Dataset]:
    """A function from a dataset of rows (the manifest's columns) to a lazy dataset of results, in no fixed order.

    A result has the resolved request, status and error, and the row's other columns. With config.output the clip is
    stored and `clip` is its path; without, `clip_bytes` holds the MP4 or PNG. preprocess makes rows of the dataset's
    own; postprocess changes results. A row that breaks a rule or fails is a result with status "failed". ConfigError
    when the cluster is too small, or the config names several models.
    """
    run_id = _new_run_id()
    if len(config.all_models) > 1:
        raise ConfigError(
            f"a processor holds one model, and the config names {len(config.all_models)}; build one for each"
        )
    (model,) = config.all_models

    def process(dataset: Dataset) -> Dataset:
        check_fit(config)
        rows = dataset.map(preprocess, num_cpus=_READ_CPUS) if preprocess else dataset
        read = rows.map(_for_ray(read_any), fn_kwargs={"config": config}, num_cpus=_READ_CPUS)
        ended = _path(read, config, model, board=None)
        if config.output is not None:
            ended = _published(ended, config, board=None, run_id=run_id)
        results = ended.map(_for_ray(as_result), fn_kwargs={"run_id": run_id}, num_cpus=_READ_CPUS)
        results = results.map(postprocess, num_cpus=_READ_CPUS) if postprocess else results
        return _configured(results, config)

    return process


def _new_records(
    config: RenderConfig,
    plan: Plan,
    *,
    refused: list[Item],
    pending: "array[int]",
    run_id: str,
    observer: Observer,
) -> Iterator[Record]:
    """Commit the refused rows, then render the pending ones, model by model; records in the order they end."""
    assert config.output is not None
    yield from map(PublishStage(config.output, run_id=run_id), refused)
    if not any(pending):
        return
    # Ray types an actor class as a plain class, without `.remote`: hence Any.
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    with _stopped_by_ray(), _watching(board, observer):
        for model in config.all_models:
            its_buckets = {n for n, bucket in enumerate(plan.buckets, start=1) if bucket[0] == model.variant}
            mine = array("I", (bucket if bucket in its_buckets else 0 for bucket in pending))
            if any(mine):
                yield from _rendered(config, model, mine, board, run_id)


def _rendered(
    config: RenderConfig, model: ModelSection, bucket_of_row: "array[int]", board: BoardHandle, run_id: str
) -> Iterator[Record]:
    """Render the rows of one model."""
    work = ray.data.from_items([{"bucket_of_row": bucket_of_row.tobytes()}])
    named = {"manifest": open_manifest(config), "config": config}
    read = work.flat_map(_for_ray(read_manifest), fn_kwargs=named, num_cpus=_READ_CPUS)
    dataset = _configured(_published(_path(read, config, model, board), config, board, run_id), config)
    for row in dataset.iter_rows():
        yield Record.model_validate_json(row["record"])


def _path(items: Dataset, config: RenderConfig, model: ModelSection, board: BoardHandle | None) -> Dataset:
    """Encode, denoise, decode."""
    dataset = items
    for operator, section in (
        (Encode, config.stages.encode),
        (Denoise, config.stages.denoise),
        (Decode, config.stages.decode),
    ):
        dataset = _in_actors(dataset, operator, section, model=model, video=config.video, board=board)
    return dataset


def _published(items: Dataset, config: RenderConfig, board: BoardHandle | None, run_id: str) -> Dataset:
    return _in_actors(items, Publish, config.stages.publish, output=config.output, board=board, run_id=run_id)


def _in_actors(dataset: Dataset, operator: type, section: StageSection, **arguments: object) -> Dataset:
    return dataset.map(
        operator,
        fn_constructor_kwargs=arguments,
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus or None,
        # Two: one row is worked on while the next is fetched.
        compute=ActorPoolStrategy(size=section.replicas, max_tasks_in_flight_per_actor=2),
    )


def _configured(dataset: Dataset, config: RenderConfig) -> Dataset:
    dataset.set_name("wan_render")
    dataset.context.execution_no_progress_timeout_s = int(config.no_progress_timeout_s)
    dataset.context.enable_progress_bars = False
    # One row per block, so that a worker that dies loses one row, and rows spread over workers. repartition() does the
    # same with tasks that reserve a whole CPU, which a small machine does not have to spare.
    dataset.context.target_max_block_size = 1
    return dataset


def _for_ray(function: Callable[..., object]) -> Any:
    """The function, untyped: Ray's types know a function of the row alone, not one that also gets fn_kwargs."""
    return function


@contextmanager
def _stopped_by_ray() -> Iterator[None]:
    """Turn what Ray raises when it gives up into RunStoppedError with the first cause."""
    try:
        yield
    except (RayError, SystemException, ExecutionTimeoutError) as error:
        told, cause = str(error), error
        while isinstance(cause := getattr(cause, "cause", None) or cause.__cause__, BaseException):
            told += f"\n{type(cause).__module__}.{type(cause).__name__}: {cause}"
        # Ray sends a worker's exception as the text of its traceback; what we raised stands there by name.
        ours = re.findall(r"^wan_ray\.errors\.\w+: (.+)$", told, re.MULTILINE)
        reason = ours[-1] if ours else told.strip().splitlines()[-1]
        raise RunStoppedError(f"the run stopped: {reason}") from error


@contextmanager
def _watching(board: BoardHandle, observer: Observer) -> Iterator[None]:
    """Carry the board's events to the observer while the block runs, and once more at its end."""
    ended = threading.Event()

    def watch() -> None:
        while True:
            last = ended.wait(_POLL_S)
            try:
                observer.tick(*ray.get(board.fetch.remote(), timeout=10))
            except RayError:  # the run itself reports a lost cluster
                return
            if last:
                return

    thread = threading.Thread(target=watch, name="wan-ray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=15)
        ray.kill(board)


def _run_entry(config: RenderConfig, run_id: str, *, num_rows: int) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "started_at": _now(),
        "num_rows": num_rows,
        "config": config.model_dump(mode="json"),
        "versions": package_versions(),
    }


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
