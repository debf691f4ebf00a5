"""The path on Ray Data: render() turns a manifest into a dataset of clips; build_processor() is its library face."""

import _thread
import re
import secrets
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from wan_ray.config import ModelSection, RenderConfig, Replicas, StageSection
from wan_ray.costs.check import check_layout
from wan_ray.errors import ConfigError, RunStoppedError
from wan_ray.graph.board import Board, BoardHandle
from wan_ray.graph.cluster import connected
from wan_ray.graph.leader import Denoise
from wan_ray.graph.metrics import RunMetrics
from wan_ray.graph.observer import Observer
from wan_ray.graph.operator import (
    Decode,
    Encode,
    Publish,
    UserRow,
    as_result,
    read_any,
    read_manifest,
)
from wan_ray.graph.placement import LEADER_CPUS, check_fit, check_weights, gangs_least, sweep_groups
from wan_ray.stages.items import Item
from wan_ray.stages.publish import PublishStage, package_versions
from wan_ray.stages.read import Plan, open_manifest
from wan_ray.storage.blob import Store
from wan_ray.storage.index import IndexWriter, indexed_records
from wan_ray.storage.records import Record, RecordStore
from wan_ray.storage.runs import write_run

UserMap = Callable[[UserRow], UserRow]
_READ_CPUS = 0.05
_POLL_S = 0.5
_SAVE_S = 120.0  # a step of the largest shapes takes most of a minute


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

    ConfigError when a layout cannot work, the cluster is too small or the checkpoint is wrong. RunStoppedError when a
    worker could not start, the store failed or the cluster was lost: what has a record stays, and the same call goes
    on from there.
    """
    config = check_layout(config, plan.buckets)
    if config.output is None:
        raise ConfigError("no output: set output in the config or give --output")
    started = time.monotonic()
    store = Store(config.output)
    known = RecordStore(store).latest()
    buckets = zip(plan.names, plan.bucket_of_row, strict=True)
    pending = array("I", (0 if name in known else bucket for name, bucket in buckets))
    skipped = sum(name in known for name in plan.names)
    with _cluster_for(config) if any(pending) else nullcontext():
        run_id = _new_run_id()
        entry = _run_entry(config, run_id, num_rows=len(plan.names), num_pending=len(plan.names) - skipped)
        write_run(store, {**entry, "status": "running"})
        observer = RunMetrics(config, observer) if any(pending) else observer
        observer.begin(num_rows=len(plan.names) - skipped, num_done=skipped)
        status, num_rendered = "stopped", 0
        try:
            with IndexWriter(store, run_id, plan.extra_columns) as index:
                # A crash may have come between a record and its index row.
                indexed = indexed_records(store)
                unindexed = {name: known[name] for name in sorted(known.keys() - indexed.keys())}
                for record in RecordStore(store).read_all(unindexed):
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
            statuses = indexed_records(store)
            ends = [statuses[name].status for name in plan.names if name in statuses]
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
    config = check_layout(config, {})
    (model,) = config.all_models

    def process(dataset: Dataset) -> Dataset:
        check_fit(config)
        rows = dataset.map(preprocess, num_cpus=_READ_CPUS) if preprocess else dataset
        read = rows.map(_for_ray(read_any), fn_kwargs={"config": config}, num_cpus=_READ_CPUS)
        board = _new_board()
        ended = _path(read, config, model, board, run_id)
        if config.output is not None:
            ended = _published(ended, config, board, run_id)
        results = ended.map(_for_ray(as_result), fn_kwargs={"run_id": run_id}, num_cpus=_READ_CPUS)
        results = results.map(postprocess, num_cpus=_READ_CPUS) if postprocess else results
        return _configured(results, config, model)

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
    board = _new_board()
    with _stopped_by_ray(), _watching(board, observer), _saving_when_interrupted(board):
        for model in config.all_models:
            its_buckets = {n for n, bucket in enumerate(plan.buckets, start=1) if bucket.variant == model.variant}
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
    dataset = _configured(_published(_path(read, config, model, board, run_id), config, board, run_id), config, model)
    try:
        for row in dataset.iter_rows():
            yield Record.model_validate_json(row["record"])
    finally:
        sweep_groups(run_id)


def _path(items: Dataset, config: RenderConfig, model: ModelSection, board: BoardHandle, run_id: str) -> Dataset:
    """Encode, denoise, decode."""
    stages, loaded = config.stages, {"model": model, "video": config.video, "board": board}
    encoded = _in_actors(items, Encode, stages.encode, loaded)
    leads = {"model": model, "stages": stages, "output": config.output, "board": board, "run_id": run_id}
    # All leaders are there from the start: each waits for its gang's place before Ray Data gives it a row.
    leaders = StageSection(
        num_cpus=LEADER_CPUS, replicas=Replicas(min=stages.denoise.replicas.max, max=stages.denoise.replicas.max)
    )
    denoised = _in_actors(encoded, Denoise, leaders, leads)
    return _in_actors(denoised, Decode, stages.decode, loaded)


def _published(items: Dataset, config: RenderConfig, board: BoardHandle, run_id: str) -> Dataset:
    named = {"output": config.output, "board": board, "run_id": run_id}
    return _in_actors(items, Publish, config.stages.publish, named)


def _in_actors(dataset: Dataset, operator: type, section: StageSection, arguments: dict[str, object]) -> Dataset:
    return dataset.map(
        operator,
        fn_constructor_kwargs=arguments,
        num_cpus=section.num_cpus,
        num_gpus=section.num_gpus or None,
        # Two: one row is worked on while the next is fetched.
        compute=ActorPoolStrategy(
            min_size=section.replicas.min, max_size=section.replicas.max, max_tasks_in_flight_per_actor=2
        ),
    )


def _configured(dataset: Dataset, config: RenderConfig, model: ModelSection) -> Dataset:
    dataset.set_name("wan_render")
    dataset.context.execution_no_progress_timeout_s = int(config.no_progress_timeout_s)
    dataset.context.enable_progress_bars = False
    # One row per block, so that a worker that dies loses one row, and rows spread over workers. repartition() does the
    # same with tasks that reserve a whole CPU, which a small machine does not have to spare.
    dataset.context.target_max_block_size = 1
    stages = config.stages
    if any(section.replicas.min < section.replicas.max for section in (stages.encode, stages.decode, stages.publish)):
        # Ray Data does not see what the ranks reserve: its pools must not grow into it.
        have, gangs = ray.cluster_resources(), gangs_least(config, model)
        dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=have["CPU"] - gangs.cpus, gpu=have.get("GPU", 0.0) - gangs.gpus
        )
    return dataset


def _new_board() -> BoardHandle:
    # Ray types an actor class as a plain class, without `.remote`: hence Any.
    board_class: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
    return board_class.remote()


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
                observer.tick(ray.get(board.fetch.remote(), timeout=10))
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


@contextmanager
def _saving_when_interrupted(board: BoardHandle) -> Iterator[None]:
    """While the block runs, SIGINT lets the gangs save what their clips have reached before it interrupts the block.

    A second SIGINT interrupts at once. Only the main thread can ask for that; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def save_and_interrupt() -> None:
        try:
            ray.get(board.stop.remote())
            end = time.monotonic() + _SAVE_S
            while time.monotonic() < end and ray.get(board.num_stepping.remote()):
                time.sleep(_POLL_S)
        except RayError:  # the cluster is lost, or a second SIGINT was quicker
            return
        _thread.interrupt_main(signal.SIGINT)

    def interrupted(_: int, __: object) -> None:
        signal.signal(signal.SIGINT, before)
        threading.Thread(target=save_and_interrupt, name="wan-ray-save", daemon=True).start()

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_entry(config: RenderConfig, run_id: str, *, num_rows: int, num_pending: int) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "started_at": _now(),
        "num_rows": num_rows,
        "num_pending": num_pending,
        "config": config.model_dump(mode="json"),
        "versions": package_versions(),
    }


def _new_run_id() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
