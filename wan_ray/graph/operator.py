"""Ray Data operators: each loads its stage in its worker and takes rows one by one. Errors travel in the row.

The operator of the denoise stage leads a gang: leader.py.
"""

import logging
import time
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import pyarrow as pa
import ray

from wan_ray.config import ModelSection, RenderConfig, VideoSection
from wan_ray.errors import (
    ClipStoppedError,
    ConfigError,
    GangError,
    RequestError,
    RunStoppedError,
    StageError,
    StorageError,
)
from wan_ray.extend_section import ExtendSection
from wan_ray.graph.board import BoardHandle, Event
from wan_ray.media.check import MediaCheck
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item, Row
from wan_ray.stages.publish import PublishStage, make_record
from wan_ray.stages.read import read_pending, read_row, with_media_checked
from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.manifest import Manifest
from wan_ray.storage.paths import progress_key
from wan_ray.storage.records import Record
from wan_ray.wording import without_secrets

logger = logging.getLogger(__name__)

_MAX_DEATHS = 3  # workers that one row may cost a stage, for Ray gives a dead worker's row to the next for ever

_MAX_TRIES = 2
_ONCE = (RequestError, GangError, StorageError)

UserRow = dict[str, Any]  # as Ray Data types a row


class Worker:
    """This process towards the board: what it is inside of, and how often a row has ended a process like it."""

    def __init__(self, stage: str, board: BoardHandle) -> None:
        self.stage = stage
        self.board = board
        self.id = ray.get_runtime_context().get_actor_id() or "the driver"
        self.position: int = ray.get(board.join.remote(stage, self.id))

    def begin(self, item: Item) -> None:
        """Take the item; StageError when it has ended too many workers."""
        deaths: int = ray.get(self.board.begin.remote(Event(stage=self.stage, id=item.id, worker=self.id)))
        if deaths >= _MAX_DEATHS:
            raise StageError(f"killed its worker {deaths} times; see that process's log and the node's for the cause")

    def end(self, item: Item, seconds: float) -> None:
        """Be done with the item."""
        error = item.failure.message if item.failure else None
        self.board.end.remote(Event(stage=self.stage, id=item.id, worker=self.id, seconds=seconds, error=error))


class Witness(Protocol):
    """Who is told what a process is inside of."""

    stage: str

    def begin(self, item: Item) -> None:
        """The item is taken; StageError when it must not be."""

    def end(self, item: Item, seconds: float) -> None:
        """It is done with."""


class Stage:
    """What operators share: skip failed rows, time the rest, turn an error into a failed row, tell the board."""

    def __init__(self, run: Callable[[Row], Row], worker: Witness) -> None:
        self._run = run
        self._worker = worker

    def __call__(self, row: Row) -> Row:
        name, item = self._worker.stage, without_tensors(row)
        if item.failure is not None:
            return row

        started = time.perf_counter()
        try:
            self._worker.begin(item)
        except StageError as error:
            done = item.failed(name, error).to_row()
        else:
            done = attempted(name, item, lambda: self._run(row))
        seconds = time.perf_counter() - started
        logger.info("%s request_id=%s seconds=%.2f", name, item.id, seconds)
        ended = without_tensors(done)
        self._worker.end(ended, seconds)
        timed = replace(ended, seconds={**ended.seconds, name: seconds})
        return {**timed.to_row(), "tensors": done["tensors"]}


def attempted(stage: str, item: Item, run: Callable[[], Row]) -> Row:
    """What run gives, or the item as a row that failed at the stage. That something was stopped is no failure.

    What is not the row's fault is tried once more. Gangs have tries of their own, and so has storage.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return run()
        except (ClipStoppedError, RunStoppedError):
            raise
        except Exception as error:
            logger.error("%s failed request_id=%s try=%d\n%s", stage, item.id, tries, _told(error))
            if tries == _MAX_TRIES or isinstance(error, _ONCE):
                return item.failed(stage, error).to_row()


def _told(error: Exception) -> str:
    """Its traceback. Other packages name URLs with all that is in them."""
    return without_secrets("".join(traceback.format_exception(error)))


def without_tensors(row: Row) -> Item:
    """The row's item, in a process that need not load torch."""
    return Item.from_row({**row, "tensors": b""})


class Extend:
    """The language model's operator: it takes several rows at once, and asks about those that want a rewrite."""

    def __init__(self, *, section: ExtendSection, board: BoardHandle, run_id: str, output: str | None) -> None:
        self._extend = ExtendStage(section, output=output, run_id=run_id)
        self._worker = Worker("extend", board)

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = [without_tensors(cast(Row, row)) for row in batch.to_pylist()]
        asking = [i for i, item in enumerate(items) if item.failure is None and item.sound.extend_prompt]
        if not asking:
            return batch
        started = time.perf_counter()
        # The board knows one item of a worker at a time: the first stands for all that are asked about together.
        while asking:
            try:
                self._worker.begin(items[asking[0]])
                break
            except StageError as error:
                first = asking.pop(0)
                items[first] = items[first].failed("extend", error)
                self._worker.end(items[first], 0.0)
        ended = extended(self._extend.extend, [items[i] for i in asking])
        seconds = (time.perf_counter() - started) / max(1, len(asking))
        for i, item in zip(asking, ended, strict=True):
            items[i] = replace(item, seconds={**item.seconds, "extend": seconds})
            logger.info("extend request_id=%s seconds=%.2f", item.id, seconds)
            self._worker.end(items[i], seconds)
        return pa.Table.from_pylist([dict(item.to_row()) for item in items], schema=batch.schema)


def extended(extend: Callable[[Sequence[Item]], list[Item]], items: Sequence[Item]) -> list[Item]:
    """What extend gives; where it breaks, each item is tried alone, so that one cannot fail the others."""
    try:
        return extend(items)
    except (ConfigError, RunStoppedError, StorageError):
        raise
    except Exception as error:
        logger.error("extend failed for %d rows\n%s", len(items), _told(error))
        if len(items) == 1:
            return [items[0].failed("extend", error)]
    return [one for item in items for one in extended(extend, [item])]


class Encode:
    """The text encoder's operator; the first that all rows go through, and so the one that claims them."""

    def __init__(
        self, *, model: ModelSection, video: VideoSection, board: BoardHandle, run_id: str, output: str | None
    ) -> None:
        self._encode = stage_loader(model, video).encode()
        self._stage = Stage(self._run, Worker("encode", board))
        self._claims = Claims(Store(output), run_id) if output is not None else None

    def __call__(self, row: Row) -> list[Row]:
        """The encoded row; nothing where another run works on it, or has ended it since this one began."""
        item = without_tensors(row)
        is_ours = self._claims is None or self._claims.take(item.name, item.attempt)
        return [self._stage(row)] if is_ours else []

    def _run(self, row: Row) -> Row:
        return self._encode(Item.from_row(row)).to_row()


class Decode:
    """The VAE's operator."""

    def __init__(self, model: ModelSection, video: VideoSection, board: BoardHandle) -> None:
        self._decode = stage_loader(model, video).decode()
        self._stage = Stage(self._run, Worker("decode", board))

    def __call__(self, row: Row) -> Row:
        return self._stage(row)

    def _run(self, row: Row) -> Row:
        return self._decode(Item.from_row(row)).to_row()


class Publish:
    """Stores clip and record. A storage error is not the row's fault: it ends the run, which can be resumed."""

    def __init__(self, output: str, board: BoardHandle, run_id: str) -> None:
        self._publish = PublishStage(output, run_id=run_id)
        self._worker = Worker("publish", board)

    def __call__(self, row: Row) -> dict[str, str]:
        item = Item.from_row(row)
        started = time.perf_counter()
        try:
            self._worker.begin(item)
        except StageError as error:
            item = item.failed("publish", error)
        record = self._publish(item)
        self._publish.store.delete(progress_key(item.name))
        self._worker.end(item, time.perf_counter() - started)
        return {"record": record.model_dump_json()}


def read_manifest(work: UserRow, *, manifest: Manifest, config: RenderConfig) -> Iterator[UserRow]:
    """The rows to render as items; work["bucket_of_row"] says which, and in what order, as read_pending takes it."""
    attempts = array("I", work["attempt_of_row"])
    for item in read_pending(manifest, config, array("I", work["bucket_of_row"])):
        assert item.row is not None
        yield dict(replace(item, attempt=attempts[item.row]).to_row())


def read_any(row: UserRow, *, config: RenderConfig) -> UserRow:
    """A row of a user's dataset as an item, failed if it breaks a rule or an image or video of it cannot be used."""
    return dict(with_media_checked(read_row(row, config), MediaCheck()).to_row())


def as_result(row: UserRow, *, run_id: str) -> UserRow:
    """What a user's dataset gets back: a record's fields, the row's other columns, and unpublished clips as bytes."""
    if "record" in row:
        record, clip = Record.model_validate_json(row["record"]), None
    else:
        item = Item.from_row(cast(Row, row))
        record = make_record(item, run_id=run_id)
        clip = item.clip.data if item.clip else None
    maps = ("labels", "extension", "inputs", "weights", "rendered_on", "versions")
    fields = record.model_dump(exclude={"name", "row", "extra", "seconds", *maps})
    texts = {name: getattr(record, name) or None for name in maps}
    seconds = {f"seconds_{name}": record.seconds.get(name) for name in ("encode", "denoise", "decode")}
    return {**record.extra, **fields, **texts, **seconds, "clip_bytes": clip}


def stage_loader(model: ModelSection, video: VideoSection) -> Any:
    """A StageLoader."""
    # Imported here: loading torch is for the workers that hold a model.
    from wan_ray.stages.loader import StageLoader

    return StageLoader(model=model, video=video)
