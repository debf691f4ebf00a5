"""Publish: the clip is stored, then its record is created. Readers trust records only."""

import hashlib
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from wan_ray.errors import ChecksumError, StorageError
from wan_ray.resolved import RESOLVED_FIELDS
from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.paths import clip_key
from wan_ray.storage.records import Record, RecordStore
from wan_ray.version import installed
from wan_ray.wording import without_secrets

_UPLOADS = 3
_PACKAGES = ("torch", "torchao", "transformers", "tokenizers", "ray")
_REQUEST_FIELDS = (
    *RESOLVED_FIELDS,
    "variant",
    "task",
    "seed",
    "context_scale",
    "quality",
    "step_cache",
    "guidance_interval",
    "vace",
    "compat",
    "labels",
)


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """Where a clip lies, relative to the output folder, and what its bytes hash to."""

    key: str
    sha256: str


class PublishStage:
    """Owns the output folder's clips and records for one run."""

    def __init__(self, output: str, *, run_id: str) -> None:
        self.store = Store(output)
        self.records = RecordStore(self.store)
        self.claims = Claims(self.store, run_id)
        self.run_id = run_id

    def __call__(self, item: Item) -> Record:
        """The attempt's one record: this one, or the one that somebody committed before. StorageError stops the run."""
        started, stored = time.perf_counter(), None
        if item.clip is not None:
            digest = hashlib.sha256(item.clip.data).hexdigest()
            stored = StoredClip(key=clip_key(item.id, digest, item.clip.suffix), sha256=digest)
            self._store_clip(stored, item.clip.data)
            item = replace(item, seconds={**item.seconds, "publish": time.perf_counter() - started})
        record = make_record(item, run_id=self.run_id, stored=stored)
        if not self.records.commit(record):
            record = self.records.read(record.name, record.attempt)
        self.claims.drop(record.name, record.attempt)
        return record

    def _store_clip(self, stored: StoredClip, data: bytes) -> None:
        """Store the clip and read it back: what a record names is whole, whatever happened on the way."""
        for _ in range(_UPLOADS):
            self.store.put(stored.key, data)
            with suppress(ChecksumError):
                if hashlib.sha256(self.store.get(stored.key)).hexdigest() == stored.sha256:
                    return
        raise StorageError(
            f"{self.store.location(stored.key)!r} does not hold what was written {_UPLOADS} times; "
            "the store or the way to it changes bytes"
        )


def make_record(item: Item, *, run_id: str, stored: StoredClip | None = None) -> Record:
    """What there is to say about an item that has ended; without `stored`, its clip lies nowhere."""
    fields: dict[str, Any] = {}
    if item.request is not None:
        request = asdict(item.request)
        fields |= {name: request[name] for name in _REQUEST_FIELDS}
        # What is 0 was never decided: the source that would have did not load.
        fields |= {
            "prompt_as_run": item.request.prompt,
            **{name: request[name] or None for name in ("width", "height", "fps")},
        }
        fields["inputs"] = {name: [_named(one) for one in sources] for name, sources in item.request.media.items()}
    fields["inputs"] = {**fields.get("inputs", {}), **item.inputs}
    if item.clip is not None:
        fields |= {"num_frames": item.clip.num_frames, "size_bytes": len(item.clip.data)}
    if stored is not None:
        fields |= {"clip": stored.key, "sha256": stored.sha256}
    if item.failure is not None:
        failure = item.failure
        fields |= {"error_type": failure.type, "error_stage": failure.stage, "error_message": failure.message}
    return Record(
        name=item.name,
        attempt=item.attempt,
        content=item.content,
        row=item.row,
        id=item.id,
        status="failed" if item.failure else "ok",
        prompt=item.prompt,
        extension=dict(item.extension),
        extra=dict(item.extra),
        seconds=dict(item.seconds),
        weights=dict(item.weights),
        rendered_on=dict(item.rendered_on),
        versions=package_versions(),
        run_id=run_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        **fields,
    )


def _named(source: str) -> str:
    """A path or URL as it is, without passwords; data that stood in the row by its hash."""
    if source[:5].lower() == "data:":
        return f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
    return without_secrets(source)


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide a clip's pixels."""
    return dict(_versions())


@cache  # looking them up takes milliseconds, and every record has them
def _versions() -> dict[str, str]:
    return installed(*_PACKAGES)
