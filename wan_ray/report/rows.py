"""Rows: the numbers of the index, one entry per record, in an array of some 60 bytes a row. No record is read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.blob import Store, failing_as
from wan_ray.storage.paths import INDEX
from wan_ray.storage.runs import RunEntry, config_of

STAGES = ("extend", "encode", "denoise", "decode", "publish")
NO_ROW = np.iinfo(np.int64).max  # the row number of a record without one: after all others
RECORD = np.dtype(
    [
        ("name", np.int64),  # a hash of it
        ("attempt", np.int64),
        ("place", np.int64),  # in the index, counted over its parts
        ("row", np.int64),
        ("time_s", np.float64),
        ("ok", np.bool_),
        ("refused", np.bool_),  # failed before any work
        ("seconds", np.float32, len(STAGES)),  # NaN where a stage did not run
        ("gpu_seconds", np.float32),  # times the GPUs that the stage's worker holds; NaN where the run does not say
    ]
)

GpusHeld = Mapping[tuple[str, str | None], Sequence[float]]  # by run and variant: of one worker of each stage
T = TypeVar("T")
# pyarrow makes these functions at import, where no type checker sees them: hence Any.
pc: Any = pyarrow.compute
_NUM_READERS = 8
_BATCH_ROWS = 32_768
_SECONDS = tuple(f"seconds_{stage}" for stage in STAGES)
_COLUMNS = ("record", "attempt", "row", "status", "error_stage", "variant", "run_id", "created_at", *_SECONDS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The table has dtype RECORD, in the order of time; of a record that the index has twice, its last attempt.

    part_starts: the place of the first row of each part, and at last the number of places.
    """

    parts: Sequence[str]
    part_starts: Sequence[int]
    table: np.ndarray


def while_parts_stay(store: Store, read: Callable[[list[str]], T]) -> T:
    """What `read` makes of the index's parts; again when one vanished meanwhile, as they do when they are merged."""
    tries = 3
    while True:
        parts, tries = _parts(store), tries - 1
        try:
            return read(parts)
        except StorageError:
            if tries == 0 or set(parts) <= set(_parts(store)):
                raise


def _parts(store: Store) -> list[str]:
    return [f"{INDEX}/{name}" for name in store.names(INDEX) if name.endswith(".parquet")]


def over_parts(work: Callable[[str], T], parts: Sequence[str]) -> Iterator[T]:
    """work(part) for every part in their order, several at a time."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        yield from pool.map(work, parts)


def batches(store: Store, part: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """These columns of a part, a bounded number of rows at a time; null where an older part lacks one."""
    with failing_as(StorageError, f"cannot read the index part {store.location(part)!r}"), store.open(part) as file:
        parquet = pq.ParquetFile(file)
        known = [name for name in columns if name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=known):
            missing = {name: pa.nulls(len(batch)) for name in columns if name not in known}
            yield pa.record_batch({**dict(zip(known, batch.columns, strict=True)), **missing})


def read_rows(store: Store, parts: Sequence[str], gpus: GpusHeld) -> Rows:
    """The numbers of every record in these parts."""
    tables = list(over_parts(partial(_read_part, store, gpus=gpus), parts))
    table = np.concatenate([np.empty(0, RECORD), *tables])
    table["place"] = np.arange(len(table))
    by_name = np.lexsort((table["attempt"], table["name"]))
    names = table["name"][by_name]
    is_last = np.append(names[1:] != names[:-1], True)[: len(names)]
    table = table[by_name[is_last]]
    return Rows(
        parts=parts,
        part_starts=np.cumsum([0, *map(len, tables)]).tolist(),
        table=table[np.argsort(table["time_s"], kind="stable")],
    )


def fetch(store: Store, rows: Rows, places: np.ndarray, columns: Sequence[str]) -> list[dict[str, object]]:
    """These columns of the rows at these places, in their order; only the parts that have them are read."""
    found: dict[int, dict[str, object]] = {}
    for number in np.unique(np.searchsorted(rows.part_starts, places, side="right") - 1):
        start = rows.part_starts[number]
        for batch in batches(store, rows.parts[number], columns):
            here = places[(places >= start) & (places < start + len(batch))]
            found |= zip(here.tolist(), batch.take(pa.array(here - start)).to_pylist(), strict=True)
            start += len(batch)
    return [found[place] for place in places.tolist()]


def gpus_held(runs: Sequence[RunEntry]) -> GpusHeld:
    """GPUs by the configs of the runs; none for a config of another version, NaN for a gang whose size is not told."""
    held: dict[tuple[str, str | None], Sequence[float]] = {}
    for run in runs:
        try:
            config = config_of(run)
        except ConfigError:
            continue
        stages = config.stages
        for model in config.all_models:
            ranks = float("nan") if model.gang == "auto" else model.gang.degrees.world_size if model.gang else 1
            held[str(run["run_id"]), model.variant] = (
                stages.extend.num_gpus,
                stages.encode.num_gpus,
                stages.denoise.num_gpus * ranks,
                stages.decode.num_gpus,
                stages.publish.num_gpus,
            )
    return held


def _read_part(store: Store, part: str, *, gpus: GpusHeld) -> np.ndarray:
    return np.concatenate([np.empty(0, RECORD), *(_table(b, gpus) for b in batches(store, part, _COLUMNS))])


def _table(batch: pa.RecordBatch, gpus: GpusHeld) -> np.ndarray:
    table = np.zeros(len(batch), RECORD)
    table["name"] = list(map(hash, batch["record"].to_pylist()))
    table["attempt"] = pc.fill_null(batch["attempt"].cast(pa.int64()), 1)
    table["row"] = pc.fill_null(batch["row"], int(NO_ROW))
    table["time_s"] = batch["created_at"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_numpy() / 1000
    table["ok"] = pc.equal(batch["status"], "ok")
    table["refused"] = pc.fill_null(pc.equal(batch["error_stage"], "read"), False)
    for number, column in enumerate(_SECONDS):
        table["seconds"][:, number] = batch[column].to_numpy(zero_copy_only=False)
    unknown = (float("nan"),) * len(STAGES)
    its_gpus: dict[tuple[str, str | None], int] = {}
    pairs = zip(batch["run_id"].to_pylist(), batch["variant"].to_pylist(), strict=True)
    which = [its_gpus.setdefault(pair, len(its_gpus)) for pair in pairs]
    held = np.array([gpus.get(pair, unknown) for pair in its_gpus]).reshape(-1, len(STAGES))
    table["gpu_seconds"] = (np.nan_to_num(table["seconds"]) * held[which]).sum(axis=1)
    return table
