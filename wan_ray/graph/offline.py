"""The path on Ray Data: a model's rows become records of clips; build_processor() is its library face."""

import re
import secrets
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from wan_ray.config import ModelSection, RenderConfig, Replicas, StageSection
from wan_ray.costs.check import check_layout
from wan_ray.errors import ConfigError, RunStoppedError
from wan_ray.extend_section import ExtendSection
from wan_ray.graph.board import Board, BoardHandle
from wan_ray.graph.leader import Denoise
from wan_ray.graph.operator import (
    Decode,
    Encode,
    Extend,
    Publish,
    UserRow,
    as_result,
    read_any,
    read_manifest,
)
from wan_ray.graph.placement import LEADER_CPUS, check_fit, gangs_least, sweep_groups
from wan_ray.stages.read import open_manifest
from wan_ray.storage.records import Record

UserMap = Callable[[UserRow], UserRow]
_READ_CPUS = 0.05


def build_processor(
    config: RenderConfig, preprocess: UserMap | None = None, postprocess: UserMap | None = None
) -> Callable[[Dataset], Dataset]:
    """A function from a dataset of rows (the manifest's columns) to a lazy dataset of results, in no fixed order.

    A result has the resolved request, status and error, and the row's other columns. With config.output the clip is
    stored and `clip` is its path; without, `clip_bytes` holds the MP4 or PNG. preprocess makes rows of the dataset's
    own; postprocess changes results. A row that breaks a rule or fails is a result with status "failed". ConfigError
    when the cluster is too small, or the config names several models.
    """
    run_id = new_run_id()
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
        board = new_board()
        ended = _path(read, config, model, board, run_id, shares=False)
        if config.output is not None:
            ended = _published(ended, config, board, run_id)
        results = ended.map(_for_ray(as_result), fn_kwargs={"run_id": run_id}, num_cpus=_READ_CPUS)
        results = results.map(postprocess, num_cpus=_READ_CPUS) if postprocess else results
        return _configured(results, config, model)

    return process


def rendered(
    config: RenderConfig,
    model: ModelSection,
    board: BoardHandle,
    run_id: str,
    *,
    bucket_of_row: "array[int]",
    attempt_of_row: "array[int]",
) -> Iterator[Record]:
    """Render the rows of one model that no other run has claimed; their records, in the order they end."""
    work = ray.data.from_items([{"bucket_of_row": bucket_of_row.tobytes(), "attempt_of_row": attempt_of_row.tobytes()}])
    named = {"manifest": open_manifest(config), "config": config}
    read = work.flat_map(_for_ray(read_manifest), fn_kwargs=named, num_cpus=_READ_CPUS)
    path = _path(read, config, model, board, run_id, shares=True)
    dataset = _configured(_published(path, config, board, run_id), config, model)
    try:
        for row in dataset.iter_rows():
            yield Record.model_validate_json(row["record"])
    finally:
        sweep_groups(run_id)


def _path(
    items: Dataset, config: RenderConfig, model: ModelSection, board: BoardHandle, run_id: str, *, shares: bool
) -> Dataset:
    """Encode, denoise, decode; where it shares the output with other runs, only the rows that it can claim."""
    stages, loaded = config.stages, {"model": model, "video": config.video, "board": board}
    if config.extend is not None:
        items = _extended(items, config, config.extend, board, run_id)
    encoded = _in_actors(
        items, Encode, stages.encode, {**loaded, "run_id": run_id, "output": config.output if shares else None}
    )
    leads = {"model": model, "stages": stages, "output": config.output, "board": board, "run_id": run_id}
    # All leaders are there from the start: each waits for its gang's place before Ray Data gives it a row.
    leaders = StageSection(
        num_cpus=LEADER_CPUS, replicas=Replicas(min=stages.denoise.replicas.max, max=stages.denoise.replicas.max)
    )
    denoised = _in_actors(encoded, Denoise, leaders, leads)
    return _in_actors(denoised, Decode, stages.decode, loaded)


def _extended(items: Dataset, config: RenderConfig, section: ExtendSection, board: BoardHandle, run_id: str) -> Dataset:
    """Prompts rewritten, several rows at once, by one worker where it asks a service, so that its limits hold.

    Before rows are claimed: runs that share an output share the replies.
    """
    stage = config.stages.extend
    named = {"section": section, "board": board, "run_id": run_id, "output": config.output}
    return items.map_batches(
        Extend,
        batch_size=section.rows_at_once,
        batch_format="pyarrow",
        fn_constructor_kwargs=named,
        num_cpus=stage.num_cpus,
        num_gpus=stage.num_gpus or None,
        compute=ActorPoolStrategy(
            min_size=stage.replicas.min, max_size=stage.replicas.max, max_tasks_in_flight_per_actor=2
        ),
    )


def _published(items: Dataset, config: RenderConfig, board: BoardHandle, run_id: str) -> Dataset:
    named = {"output": config.output, "board": board, "run_id": run_id}
    return _in_actors(items, Publish, config.stages.publish, named)


def _in_actors(dataset: Dataset, operator: type, section: StageSection, arguments: dict[str, object]) -> Dataset:
    # Encode gives no row where another run has it.
    apply = dataset.flat_map if operator is Encode else dataset.map
    return apply(
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
    others = (stages.extend, stages.encode, stages.decode, stages.publish)
    if any(section.replicas.min < section.replicas.max for section in others):
        # Ray Data does not see what the ranks reserve: its pools must not grow into it.
        have, gangs = ray.cluster_resources(), gangs_least(config, model)
        dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=have["CPU"] - gangs.cpus, gpu=have.get("GPU", 0.0) - gangs.gpus
        )
    return dataset


def new_board() -> BoardHandle:
    """A run's board, on the cluster."""
    # Ray types an actor class as a plain class, without `.remote`: hence Any.
    board_class: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
    return board_class.remote()


def _for_ray(function: Callable[..., object]) -> Any:
    """The function, untyped: Ray's types know a function of the row alone, not one that also gets fn_kwargs."""
    return function


@contextmanager
def stopped_by_ray() -> Iterator[None]:
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


def new_run_id() -> str:
    """Runs sort by it in the order they began."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
