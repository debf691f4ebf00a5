"""Record: what became of one manifest row; RecordStore: the folder of records, which alone says what is done."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RECORDS, record_key

_SUFFIX = ".json"
_NUM_READERS = 32  # a bucket answers in tens of milliseconds, and many at once


class Record(BaseModel):
    """One row's end. A failed row has the error fields, and of the request what was understood.

    name is the record's file stem, row the manifest's row number, clip a path relative to the output folder, seconds
    go by stage, weights by part of the model (fingerprints), created_at is ISO 8601 in UTC. extra holds the manifest's
    other columns; NaN in it is written as null, for JSON has no NaN. inputs says which frames of its sources a clip
    shows and where their pixels went.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    row: int | None = None
    id: str
    status: Literal["ok", "failed"]
    error_type: str | None = None
    error_stage: str | None = None
    error_message: str | None = None
    task: str | None = None
    prompt: str | None = None
    prompt_as_run: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    solver: str | None = None
    seed: int | None = None
    context_scale: float | None = None
    labels: dict[str, str] = {}
    inputs: dict[str, JsonValue] = {}
    extra: dict[str, JsonValue] = {}
    clip: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    seconds: dict[str, float] = {}
    weights: dict[str, str] = {}
    versions: dict[str, str] = {}
    variant: str | None = None
    run_id: str
    created_at: str


class RecordStore:
    """The records of one output folder. Committing is creating: the first record of a row stands for good."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> set[str]:
        """Names of all committed records, by one listing of the folder."""
        return {name.removesuffix(_SUFFIX) for name in self._store.names(RECORDS) if name.endswith(_SUFFIX)}

    def commit(self, record: Record) -> bool:
        """True when this record is now the row's; False when the row already had one, which stays."""
        return self._store.create(record_key(record.name), record.model_dump_json(indent=1).encode())

    def read(self, name: str) -> Record:
        """The committed record; StorageError when there is none, or it is not one of ours."""
        key = record_key(name)
        try:
            return Record.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise StorageError(f"{self._store.location(key)!r} is not a record of this version: {error}") from error

    def read_all(self, names: Iterable[str]) -> list[Record]:
        """The committed records of these names, in their order, read many at a time."""
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            return list(pool.map(self.read, names))
