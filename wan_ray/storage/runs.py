"""Runs: one file for each that wrote to an output folder, with its config, how it ended, and when it was last alive."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RUNS

RunEntry = Mapping[str, object]

_BEAT_S = 10.0
_DEAD_AFTER_S = 90.0
_HEARTBEAT = ".alive"


def write_run(store: Store, entry: RunEntry) -> None:
    """Put the entry in the file of its run_id."""
    store.put(f"{RUNS}/{entry['run_id']}.json", json.dumps(entry, indent=1, ensure_ascii=False).encode())


def read_runs(store: Store) -> list[RunEntry]:
    """Entries in the order the runs began; empty before the first run. StorageError when a file is not ours."""
    entries = []
    for name in store.names(RUNS):
        if not name.endswith(".json"):
            continue
        key = f"{RUNS}/{name}"
        try:
            entry = json.loads(store.get(key))
            entry["run_id"]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{store.location(key)!r} is not a run of wan-ray: {error!r}; move it away") from error
        entries.append(entry)
    return sorted(entries, key=lambda entry: (str(entry.get("started_at", "")), str(entry["run_id"])))


def config_of(run: RunEntry) -> RenderConfig:
    """The run's config, passwords masked; ConfigError when it is of another version."""
    try:
        return RenderConfig.model_validate(run.get("config"))
    except ValidationError as error:
        raise ConfigError(f"the config of run {run['run_id']!r} is of another version: {error}") from None


@contextmanager
def alive(store: Store, run_id: str) -> Iterator[None]:
    """Keeps saying that the run is alive while the block runs, and that it is not afterwards."""
    ended = threading.Event()
    key = f"{RUNS}/{run_id}{_HEARTBEAT}"
    sign = json.dumps({"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}).encode()
    store.put(key, sign)

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            with suppress(StorageError):  # the run itself notices, and may still outlast it
                store.put(key, sign)

    thread = threading.Thread(target=beat, name="wan-ray-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=_BEAT_S)
        with suppress(StorageError):
            store.delete(key)


def living_runs(store: Store) -> set[str]:
    """run_ids that said within the last minute and a half that they are alive, and do not lie as far as we can see.

    A run of this very machine whose process has gone is dead at once.
    """
    living = set()
    for entry in store.entries(RUNS):
        if not entry.name.endswith(_HEARTBEAT) or entry.name.startswith("."):
            continue
        if time.time() - entry.modified_at < _DEAD_AFTER_S and not _gone(store, f"{RUNS}/{entry.name}"):
            living.add(entry.name.removesuffix(_HEARTBEAT))
    return living


def _gone(store: Store, key: str) -> bool:
    try:
        sign = json.loads(store.get(key))
    except (StorageError, ValueError):  # it ended just now
        return True
    return sign["machine"] == _machine() and _started(sign["pid"]) != sign["started"]


def _machine() -> list[str] | None:
    """Since when this machine is up, and which process numbers we share (containers have their own)."""
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When the process with this number began, in ticks since boot: numbers are used again. None: no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
