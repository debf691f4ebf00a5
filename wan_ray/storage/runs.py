"""run.json: which runs wrote to an output folder, with what config, and how each ended."""

import json
from collections.abc import Mapping

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RUN

RunEntry = Mapping[str, object]


def write_run(store: Store, entry: RunEntry) -> None:
    """Put the entry in place of the one with its run_id, or after the others."""
    runs = {known["run_id"]: known for known in read_runs(store)}
    runs[entry["run_id"]] = entry
    store.put(RUN, json.dumps({"runs": list(runs.values())}, indent=1, ensure_ascii=False).encode())


def read_runs(store: Store) -> list[RunEntry]:
    """Entries in the order the runs began; empty before the first run. StorageError when the file is not ours."""
    if not store.exists(RUN):
        return []
    try:
        runs = {run["run_id"]: run for run in json.loads(store.get(RUN))["runs"]}
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{store.location(RUN)!r} is not a run.json of wan-ray: {error!r}; move it away") from error
    return list(runs.values())
