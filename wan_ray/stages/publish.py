"""Publish: the clip is stored, then its record is created. Readers trust records only."""

import hashlib
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from wan_ray.stages.items import Item
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import clip_key
from wan_ray.storage.records import Record, RecordStore

_PACKAGES = ("wan-ray", "torch", "transformers", "tokenizers", "ray")
_REQUEST_FIELDS = (
    "task",
    "negative_prompt",
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "solver",
    "seed",
    "labels",
)


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """Where a clip lies, relative to the output folder, and what its bytes hash to."""

    key: str
    sha256: str


class PublishStage:
    """Owns the output folder's clips and records for one run."""

    name = "publish"

    def __init__(self, output: str, *, run_id: str, variant: str) -> None:
        self.store = Store(output)
        self.records = RecordStore(self.store)
        self.run_id = run_id
        self.variant = variant

    def __call__(self, item: Item) -> Record:
        """The row's one record: this one, or the one that somebody committed before. StorageError stops the run."""
        started, stored = time.perf_counter(), None
        if item.clip is not None:
            digest = hashlib.sha256(item.clip.data).hexdigest()
            stored = StoredClip(key=clip_key(item.id, digest, item.clip.suffix), sha256=digest)
            self.store.put(stored.key, item.clip.data)
            item = replace(item, seconds={**item.seconds, "publish": time.perf_counter() - started})
        record = make_record(item, run_id=self.run_id, variant=self.variant, stored=stored)
        return record if self.records.commit(record) else self.records.read(record.name)


def make_record(item: Item, *, run_id: str, variant: str, stored: StoredClip | None = None) -> Record:
    """What there is to say about an item that has ended; without `stored`, its clip lies nowhere."""
    fields: dict[str, Any] = {}
    if item.request is not None:
        request = asdict(item.request)
        fields |= {"prompt_as_run": item.request.prompt, **{name: request[name] for name in _REQUEST_FIELDS}}
    if item.clip is not None:
        fields |= {"num_frames": item.clip.num_frames, "size_bytes": len(item.clip.data)}
    if stored is not None:
        fields |= {"clip": stored.key, "sha256": stored.sha256}
    if item.failure is not None:
        failure = item.failure
        fields |= {"error_type": failure.type, "error_stage": failure.stage, "error_message": failure.message}
    return Record(
        name=item.name,
        row=item.row,
        id=item.id,
        status="failed" if item.failure else "ok",
        prompt=item.prompt,
        extra=dict(item.extra),
        seconds=dict(item.seconds),
        weights=dict(item.weights),
        versions=package_versions(),
        variant=variant,
        run_id=run_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        **fields,
    )


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that decide a clip's pixels."""
    return dict(_versions())


@cache  # looking them up takes milliseconds, and every record has them
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
