"""Ray Data operators: each loads its stage in its worker and takes rows one by one. Errors travel in the row."""

import logging
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

from wan_ray.config import ModelSection, RenderConfig, VideoSection
from wan_ray.graph.board import Event
from wan_ray.stages.items import Item, Row
from wan_ray.stages.publish import PublishStage, make_record
from wan_ray.stages.read import read_pending, read_row
from wan_ray.storage.manifest import Manifest
from wan_ray.storage.records import Record

logger = logging.getLogger(__name__)

# Ray types an actor method as a plain function, without `.remote`: hence Any.
BoardHandle = Any
UserRow = dict[str, Any]  # as Ray Data types a row


class Stage:
    """What the operators share: skip failed items, time the rest, turn an error into a failed item, tell the board."""

    def __init__(self, name: str, run: Callable[[Item], Item], board: BoardHandle | None) -> None:
        self.name = name
        self.run = run
        self.board = board

    def __call__(self, row: Row) -> Row:
        item = Item.from_row(row)
        if item.failure is not None:
            return row
        note(self.board, Event(stage=self.name, id=item.id))
        started = time.perf_counter()
        try:
            done = self.run(item)
        except Exception as error:
            logger.exception("%s failed request_id=%s", self.name, item.id)
            done = item.failed(self.name, error)
        seconds = time.perf_counter() - started
        logger.info("%s request_id=%s seconds=%.2f", self.name, item.id, seconds)
        message = done.failure.message if done.failure else None
        note(self.board, Event(stage=self.name, id=item.id, seconds=seconds, error=message))
        return replace(done, seconds={**done.seconds, self.name: seconds}).to_row()


def note(board: BoardHandle | None, event: Event) -> None:
    """Tell the board, if there is one."""
    if board is not None:
        board.note.remote(event)


class Encode:
    """The text encoder's operator."""

    def __init__(self, model: ModelSection, video: VideoSection, board: BoardHandle | None) -> None:
        self._stage = Stage("encode", _loader(model, video).encode(), board)

    def __call__(self, row: Row) -> Row:
        return self._stage(row)


class Denoise:
    """The DiT's operator."""

    def __init__(self, model: ModelSection, video: VideoSection, board: BoardHandle | None) -> None:
        self._stage = Stage("denoise", _loader(model, video).denoise(), board)

    def __call__(self, row: Row) -> Row:
        return self._stage(row)


class Decode:
    """The VAE's operator."""

    def __init__(self, model: ModelSection, video: VideoSection, board: BoardHandle | None) -> None:
        self._stage = Stage("decode", _loader(model, video).decode(), board)

    def __call__(self, row: Row) -> Row:
        return self._stage(row)


class Publish:
    """Stores clip and record. A storage error is not the row's fault: it ends the run, which can be resumed."""

    def __init__(self, output: str, board: BoardHandle | None, run_id: str) -> None:
        self._publish = PublishStage(output, run_id=run_id)
        self._board = board

    def __call__(self, row: Row) -> dict[str, str]:
        item = Item.from_row(row)
        note(self._board, Event(stage="publish", id=item.id))
        started = time.perf_counter()
        record = self._publish(item)
        note(self._board, Event(stage="publish", id=item.id, seconds=time.perf_counter() - started))
        return {"record": record.model_dump_json()}


def read_manifest(work: UserRow, *, manifest: Manifest, config: RenderConfig) -> Iterator[UserRow]:
    """The rows to render as items; work["bucket_of_row"] says which, and in what order, as read_pending takes it."""
    for item in read_pending(manifest, config, array("I", work["bucket_of_row"])):
        yield dict(item.to_row())


def read_any(row: UserRow, *, config: RenderConfig) -> UserRow:
    """A row of a user's dataset as an item, failed if it breaks a rule."""
    return dict(read_row(row, config).to_row())


def as_result(row: UserRow, *, run_id: str) -> UserRow:
    """What a user's dataset gets back: a record's fields, the row's other columns, and unpublished clips as bytes."""
    if "record" in row:
        record, clip = Record.model_validate_json(row["record"]), None
    else:
        item = Item.from_row(cast(Row, row))
        record = make_record(item, run_id=run_id)
        clip = item.clip.data if item.clip else None
    fields = record.model_dump(exclude={"name", "row", "extra", "inputs", "seconds", "labels", "weights", "versions"})
    texts = {name: getattr(record, name) or None for name in ("labels", "inputs", "weights", "versions")}
    seconds = {f"seconds_{name}": record.seconds.get(name) for name in ("encode", "denoise", "decode")}
    return {**record.extra, **fields, **texts, **seconds, "clip_bytes": clip}


def _loader(model: ModelSection, video: VideoSection) -> Any:
    # Imported here: loading torch is for the workers that hold a model.
    from wan_ray.stages.loader import StageLoader

    return StageLoader(model=model, video=video)
