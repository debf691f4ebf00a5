"""Job: what a client asked for and was promised; JobStore: the jobs under an output, which any process may read.

A job is never changed. Its end is the record of its id, as of a batch row; until then it is pending.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wan_ray.errors import JobNotFoundError, StorageError
from wan_ray.media.source import name_of
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import progress_key, record_key
from wan_ray.storage.records import Record, RecordStore

T = TypeVar("T")
Order = Literal["asc", "desc"]

JOBS = "jobs"
PENDING = "pending"
UPLOADS = "uploads"
_KEYS = "idempotency"
_NUM_READERS = 16
_NEVER_ACCEPTED_S = 600.0  # a pending mark without a job is of a create that was cut short, or of one under way
_JOB_ID = re.compile(r"video_[0-9a-f]{43}")


class Job(BaseModel):
    """An accepted job. request is a manifest row whose id is the job's; media in it is stored under the output.

    owner is the name of the API key, "local" where there are none. model is the variant that renders it. seconds and
    size are echoed as the client gave them. Times are seconds since 1970. The smaller the priority, the earlier it
    runs. idempotency_key is the client's for the request that made the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    owner: str
    created_at: float
    request: dict[str, JsonValue]
    model: str
    seconds: str | None = None
    size: str | None = None
    priority: int = 0
    deadline_at: float | None = None
    expires_at: float | None = None
    webhook_url: str | None = None
    metadata: dict[str, str] = {}
    remixed_from: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """Some of an owner's jobs, in the order asked for; has_more: there are others behind them."""

    jobs: Sequence[Job]
    has_more: bool


class JobStore:
    """The jobs, their uploads and their results under one output."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records = RecordStore(store)

    def create(self, job: Job) -> None:
        """Store the job; from here on it is pending, whatever happens to any process."""
        self.store.put(_pending_key(job.id), job.owner.encode())
        self.store.put(_job_key(job.owner, job.id), job.model_dump_json().encode())

    def get(self, owner: str, job_id: str) -> Job:
        """JobNotFoundError when this owner has no such job."""
        job = self._find(owner, job_id) if _JOB_ID.fullmatch(job_id) else None
        if job is None:
            raise JobNotFoundError(f"there is no video {job_id[:80]!r}")
        return job

    def page(self, owner: str, *, after: str | None, limit: int, order: Order) -> JobPage:
        """The owner's jobs by the time they were accepted, behind `after`; JobNotFoundError when that is not there."""
        ids = [job_id for job_owner, job_id in self._names() if job_owner == owner]
        if order == "desc":
            ids.reverse()
        if after is not None:
            if after not in ids:
                raise JobNotFoundError(f"there is no video {after[:80]!r} to list after")
            ids = ids[ids.index(after) + 1 :]
        jobs = _in_threads(lambda job_id: self._find(owner, job_id), ids[:limit])
        return JobPage(jobs=[job for job in jobs if job is not None], has_more=len(ids) > limit)

    def record(self, job_id: str) -> Record | None:
        """What became of the job; None while it is pending."""
        return self.records.read(job_id) if self.records.has(job_id, 1) else None

    def records_of(self, jobs: Iterable[Job]) -> dict[str, Record | None]:
        """The same of several, by id."""
        ids = [job.id for job in jobs]
        return dict(zip(ids, _in_threads(self.record, ids), strict=True))

    def clip(self, record: Record) -> bytes:
        """The bytes of an "ok" record's clip."""
        if record.clip is None:
            raise StorageError(f"the record of {record.id!r} names no clip")
        return self.store.get(record.clip)

    def put_upload(self, job_id: str, name: str, data: bytes) -> str:
        """Store what a client sent; returns the path or URL for the job's request. name is a file name of ours."""
        key = f"{UPLOADS}/{job_id}/{name}"
        self.store.put(key, data)
        return self.store.location(key)

    def uploads(self, job_id: str) -> dict[str, bytes]:
        """What the job's clients sent, by the path or URL that put_upload gave it."""
        keys = [f"{UPLOADS}/{job_id}/{name}" for name in self.store.names(f"{UPLOADS}/{job_id}")]
        return {self.store.location(key): self.store.get(key) for key in keys}

    def reserve(self, owner: str, idempotency_key: str, *, body_sha256: str, job_id: str) -> tuple[str, str]:
        """(body hash, job id) that stand for the owner's key: these, or those of the first that came with it."""
        self.store.create(_reserved_key(owner, idempotency_key), json.dumps([body_sha256, job_id]).encode())
        return self.reserved(owner, idempotency_key) or (body_sha256, job_id)

    def reserved(self, owner: str, idempotency_key: str) -> tuple[str, str] | None:
        """What reserve() said of the key, if it was asked before, and its job was not deleted since."""
        key = _reserved_key(owner, idempotency_key)
        if not self.store.exists(key):
            return None
        found: tuple[str, str] = tuple(json.loads(self.store.get(key)))
        return found

    def pending(self) -> Iterator[Job]:
        """All jobs, of any owner, that have not ended, or whose end was not settled; oldest first."""
        for job_id in self.store.names(PENDING):
            owner = self.store.get(_pending_key(job_id)).decode()
            job = self._find(owner, job_id)
            if job is not None:
                yield job
            elif time.time() - created_at(job_id) > _NEVER_ACCEPTED_S:
                self.store.delete(_pending_key(job_id))

    def settle(self, job: Job) -> None:
        """The job has ended, and nothing is left to do about it."""
        self.store.delete(_pending_key(job.id))

    def exists(self, job: Job) -> bool:
        """False once the job was deleted."""
        return self.store.exists(_job_key(job.owner, job.id))

    def delete(self, job: Job) -> None:
        """Remove the job and all that belongs to it. Whoever still works at it removes what it writes (see wipe)."""
        self.store.delete(_job_key(job.owner, job.id))
        if job.idempotency_key is not None:
            self.store.delete(_reserved_key(job.owner, job.idempotency_key))
        self.wipe(job.id)
        self.settle(job)

    def wipe(self, job_id: str) -> None:
        """Remove what a deleted job left: uploads, saved steps, clip and record."""
        for name in self.store.names(f"{UPLOADS}/{job_id}"):
            self.store.delete(f"{UPLOADS}/{job_id}/{name}")
        self.store.delete(progress_key(job_id))
        record = self.record(job_id)
        if record is not None:
            if record.clip is not None:
                self.store.delete(record.clip)
            self.store.delete(record_key(job_id))

    def expired(self, now: float, *, keep_s: float) -> Iterator[Job]:
        """Jobs, of any owner, whose time is over; none that was accepted within keep_s is looked at."""
        for owner, job_id in self._names():
            if created_at(job_id) + keep_s < now:
                job = self._find(owner, job_id)
                if job is not None and job.expires_at is not None and job.expires_at < now:
                    yield job

    def _names(self) -> list[tuple[str, str]]:
        """(owner, job id) of all jobs, oldest first within an owner."""
        stems = (name.removesuffix(".json").partition("~") for name in self.store.names(JOBS))
        return [(owner, job_id) for owner, _, job_id in stems]

    def _find(self, owner: str, job_id: str) -> Job | None:
        key = _job_key(owner, job_id)
        if not self.store.exists(key):
            return None
        try:
            return Job.model_validate_json(self.store.get(key))
        except ValidationError as error:
            raise StorageError(f"{self.store.location(key)!r} is not a job of this version: {error}") from error


def new_job_id(now: float) -> str:
    """An id for a job accepted at this time: ids sort by it. 128 bits of it are drawn, so none can be guessed."""
    return f"video_{int(now * 1000):011x}{secrets.token_hex(16)}"


def created_at(job_id: str) -> float:
    """When a job with this id was accepted, in seconds since 1970."""
    return int(job_id[6:17], 16) / 1000


def why_failed(job: Job, record: Record) -> str:
    """The record's message for the job's owner: without the places in the store where it names what was sent."""
    message = record.error_message or ""
    for source in texts_in(job.request):
        if f"/{UPLOADS}/{job.id}/" in source:
            message = message.replace(name_of(source), "what was sent")
    return message


def texts_in(value: object) -> Iterator[str]:
    """The texts that a value of JSON or YAML holds, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts_in(one)


def _job_key(owner: str, job_id: str) -> str:
    return f"{JOBS}/{owner}~{job_id}.json"


def _reserved_key(owner: str, idempotency_key: str) -> str:
    return f"{_KEYS}/{hashlib.sha256(json.dumps([owner, idempotency_key]).encode()).hexdigest()}"


def _pending_key(job_id: str) -> str:
    return f"{PENDING}/{job_id}"


def _in_threads(function: Callable[[str], T], ids: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(function, ids))
