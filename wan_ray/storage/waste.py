"""Waste: what runs that were cut short left in an output folder, and nobody needs."""

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wan_ray.storage.blob import Entry, Store
from wan_ray.storage.index import compact_index, indexed_clips
from wan_ray.storage.paths import CLAIMS, CLIPS, INDEX, PROGRESS, PROMPTS, RECORDS, RUNS, name_and_attempt, prompt_claim
from wan_ray.storage.records import RecordStore
from wan_ray.storage.runs import living_runs


@dataclass(frozen=True, kw_only=True)
class Waste:
    """A file that may go, and why."""

    key: str
    size_bytes: int
    why: str


def find_waste(store: Store, *, older_than_s: float) -> list[Waste]:
    """Clips without a record, unfinished files, and claims, saved steps and heartbeats that no run needs.

    Only what is older than older_than_s: a run at work stores a clip before its record.
    """
    before = time.time() - older_than_s
    # Clips are listed before records are: a clip published in between has its record then.
    files = [
        (folder, entry)
        for folder in (CLIPS, CLAIMS, PROGRESS, RUNS, RECORDS, INDEX)
        for entry in store.entries(folder)
        if entry.modified_at < before
    ]
    latest = RecordStore(store).latest()
    clips, living = _named_clips(store, latest), living_runs(store)
    answered = {prompt_claim(name) for name in store.names(PROMPTS)}
    found = []
    for folder, entry in files:
        key = f"{folder}/{entry.name}"
        why = _why(folder, entry, clips, latest, living)
        if folder == CLAIMS and entry.name.partition("+")[0] in answered:
            why = "the prompt has its reply"
        if why:
            found.append(Waste(key=key, size_bytes=entry.size_bytes, why=why))
    return found


def clear(store: Store, waste: Iterable[Waste]) -> None:
    """Remove these files and, when no run is alive, merge the parts of the index into one."""
    for one in waste:
        store.delete(one.key)
    if not living_runs(store):
        compact_index(store, run_id=f"gc-{uuid.uuid4().hex[:8]}")


def _why(folder: str, entry: Entry, clips: set[str], latest: dict[str, int], living: set[str]) -> str | None:
    if entry.name.startswith("."):
        return "a write that was cut short"
    if folder == CLIPS and f"{CLIPS}/{entry.name}" not in clips:
        return "no record names this clip"
    if folder in (CLAIMS, PROGRESS):
        name, attempt = name_and_attempt(entry.name.partition("+")[0].removesuffix(".safetensors"))
        if latest.get(name, 0) >= attempt:
            return "the row has its record"
    if folder == RUNS and entry.name.endswith(".alive") and entry.name.removesuffix(".alive") not in living:
        return "the run is dead"
    return None


def _named_clips(store: Store, latest: dict[str, int]) -> set[str]:
    """Keys of the clips that any record names, of any attempt."""
    indexed = indexed_clips(store)
    unindexed = [one for one in _attempts(latest) if one not in indexed]
    records = RecordStore(store)
    return {clip for clip in indexed.values() if clip} | {
        clip for name, attempt in unindexed if (clip := records.read(name, attempt).clip)
    }


def _attempts(latest: dict[str, int]) -> Iterator[tuple[str, int]]:
    for name, last in latest.items():
        yield from ((name, attempt) for attempt in range(1, last + 1))
