"""Record: what became of one manifest row; RecordStore: the folder of records, which alone says what is done."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RECORDS, name_and_attempt, record_key

_SUFFIX = ".json"
_READ_AHEAD = 1024
_NUM_READERS = 32  # a bucket answers in tens of milliseconds, and many at once


class Record(BaseModel):
    """One row's end. A failed row has the error fields, and of the request what was understood.

    name is the row's, attempt counts its records from 1: a later one replaces those before it, which stay as history.
    content is a hash of the resolved request, to tell when a row changed. row is the manifest's row number, clip a path
    relative to the output folder, seconds go by stage, weights by part of the model (fingerprints), rendered_on names
    the DiT's device, dtype, kernels and layout of ranks, and what was done for want of memory; created_at is ISO 8601
    in UTC. extra holds the manifest's other columns; NaN in it is written as null, for JSON has no NaN. inputs says
    which frames of its sources a clip shows and where their pixels went. extension says who rewrote the
    prompt into prompt_as_run, or why nobody did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    attempt: int = 1
    content: str | None = None
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
    quality: str | None = None
    step_cache: float = 0.0
    guidance_interval: list[float] = []
    vace: dict[str, JsonValue] = {}
    compat: str | None = None
    labels: dict[str, str] = {}
    extension: dict[str, JsonValue] = {}
    inputs: dict[str, JsonValue] = {}
    extra: dict[str, JsonValue] = {}
    clip: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    seconds: dict[str, float] = {}
    weights: dict[str, str] = {}
    rendered_on: dict[str, str] = {}
    versions: dict[str, str] = {}
    variant: str | None = None
    run_id: str
    created_at: str


class RecordStore:
    """The records of one output folder. Committing is creating: the first record of an attempt stands for good.

    An attempt is never taken back, so whoever reads an older one reads a true one: the highest counts.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def latest(self) -> dict[str, int]:
        """The last committed attempt by record name, by one listing of the folder."""
        found: dict[str, int] = {}
        for file in self._store.names(RECORDS):
            if file.endswith(_SUFFIX):
                name, attempt = name_and_attempt(file.removesuffix(_SUFFIX))
                found[name] = max(attempt, found.get(name, 0))
        return found

    def has(self, name: str, attempt: int) -> bool:
        """Whether this attempt has its record."""
        return self._store.exists(record_key(name, attempt))

    def commit(self, record: Record) -> bool:
        """True when this record now stands for its attempt; False when that had one already, which stays."""
        return self._store.create(record_key(record.name, record.attempt), record.model_dump_json(indent=1).encode())

    def read(self, name: str, attempt: int = 1) -> Record:
        """The committed record; StorageError when there is none, or it is not one of ours."""
        key = record_key(name, attempt)
        try:
            return Record.model_validate_json(self._store.get(key))
        except ValidationError as error:
            raise StorageError(f"{self._store.location(key)!r} is not a record of this version: {error}") from error

    def read_all(self, attempts: Mapping[str, int]) -> Iterator[Record]:
        """The committed records of these names and attempts, in their order, read many at a time."""
        wanted = iter(attempts.items())
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            while some := list(islice(wanted, _READ_AHEAD)):
                yield from pool.map(lambda one: self.read(*one), some)
