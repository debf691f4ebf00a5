"""run.json: which runs wrote to an output folder, with what config, and how each ended."""

import json
from collections.abc import Mapping

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.paths import RUN

RunEntry = Mapping[str, object]


def write_run(store: Store, entry: RunEntry) -> None:
    """Put the entry in place of the one with its run_id, or after the others."""
    others = [known for known in read_runs(store) if known["run_id"] != entry["run_id"]]
    store.put(RUN, json.dumps({"runs": [*others, entry]}, indent=1, ensure_ascii=False).encode())


def read_runs(store: Store) -> list[RunEntry]:
    """Entries in the order the runs began; empty before the first run. StorageError when the file is not ours."""
    if not store.exists(RUN):
        return []
    try:
        return json.loads(store.get(RUN))["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{store.location(RUN)!r} is not a run.json of wan-ray: {error!r}; move it away") from error
