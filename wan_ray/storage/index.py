"""The index: Parquet files with one row per record, for people and training jobs. Records decide; this follows."""

import io
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from pydantic import JsonValue

from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.blob import Store, failing_as
from wan_ray.storage.paths import INDEX
from wan_ray.storage.records import Record

logger = logging.getLogger(__name__)

# pyarrow makes these functions at import, where no type checker sees them: hence Any.
pc: Any = pyarrow.compute

_STAGES = ("extend", "encode", "denoise", "decode", "publish")
_MAPS = ("labels", "weights", "rendered_on", "versions")
_TEXTS = pa.map_(pa.string(), pa.string())
_FIXED = pa.schema(
    {
        "record": pa.string(),
        "attempt": pa.int64(),
        "content": pa.string(),
        "row": pa.int64(),
        "id": pa.string(),
        "status": pa.string(),
        "error_type": pa.string(),
        "error_stage": pa.string(),
        "error_message": pa.string(),
        "task": pa.string(),
        "prompt": pa.string(),
        "prompt_as_run": pa.string(),
        "negative_prompt": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "num_frames": pa.int64(),
        "fps": pa.float64(),
        "num_inference_steps": pa.int64(),
        "guidance_scale": pa.float64(),
        "flow_shift": pa.float64(),
        "solver": pa.string(),
        "seed": pa.int64(),
        "context_scale": pa.float64(),
        "quality": pa.string(),
        "step_cache": pa.float64(),
        "guidance_interval": pa.list_(pa.float64()),
        "vace": pa.string(),
        "compat": pa.string(),
        "labels": _TEXTS,
        "extension": pa.string(),
        "inputs": pa.string(),
        "clip": pa.string(),
        "sha256": pa.string(),
        "size_bytes": pa.int64(),
        **{f"seconds_{stage}": pa.float64() for stage in _STAGES},
        "weights": _TEXTS,
        "rendered_on": _TEXTS,
        "versions": _TEXTS,
        "variant": pa.string(),
        "run_id": pa.string(),
        "created_at": pa.string(),
    }
)
_EXTRA_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}


class IndexWriter:
    """Appends records to the index, part by part; owned by whoever drives the run, who closes it (or uses `with`).

    extra_columns gives the manifest's other columns and the type of each: int, float, bool or str, where str also takes
    lists and objects, as JSON. A part is written when flush_rows are waiting, when an append finds the first of them
    older than flush_interval_s, and at close. A part that cannot be written raises StorageError and keeps its rows.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        extra_columns: Mapping[str, str],
        *,
        flush_rows: int = 1000,
        flush_interval_s: float = 60.0,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._columns = _columns_of_extras(extra_columns)
        types = [(self._columns[name], _EXTRA_TYPES[kind]) for name, kind in extra_columns.items()]
        self._schema = pa.schema([*_FIXED, *(pa.field(*column) for column in types)])
        self._flush_rows = flush_rows
        self._flush_interval_s = flush_interval_s
        self._waiting: list[dict[str, object]] = []
        self._first_at = 0.0
        self._num_parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A store that has just failed would be waited for once more; the next run indexes what is missing.
        if kind is None or not issubclass(kind, StorageError):
            self.close()

    def append(self, record: Record) -> None:
        """Adds one row. An extra without a column, or of another type, stays in the record only, and is logged."""
        if not self._waiting:
            self._first_at = time.monotonic()
        row = _fixed_values(record)
        for name, value in record.extra.items():
            column = self._columns.get(name)
            if column is None:
                logger.warning("record=%s has an extra %r that is no column of this run's index", record.name, name)
            else:
                row[column] = _extra_value(value, self._schema.field(column).type, f"{record.name}: {name}")
        self._waiting.append(row)
        if len(self._waiting) >= self._flush_rows or time.monotonic() - self._first_at >= self._flush_interval_s:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting rows as one part, if there are any."""
        if not self._waiting:
            return
        table = pa.Table.from_pylist(self._waiting, schema=self._schema)
        _put_part(self._store, f"{INDEX}/part-{self._run_id}-{self._num_parts:05d}.parquet", table)
        self._num_parts += 1
        self._waiting = []

    def close(self) -> None:
        """Writes what is waiting."""
        self.flush()


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the index says of a row's last attempt."""

    attempt: int
    status: str
    content: str | None
    error_type: str | None


def indexed_records(store: Store) -> dict[str, Indexed]:
    """The last attempt of each record name that has a row in the index; reads a few columns only."""
    found: dict[str, Indexed] = {}
    table = _read_parts(store, columns=["record", "attempt", "status", "content", "error_type"])
    columns = (table[name].to_pylist() for name in table.column_names)
    for name, attempt, status, content, error_type in zip(*columns, strict=True):
        known = found.get(name)
        if known is None or known.attempt < (attempt or 1):
            found[name] = Indexed(attempt or 1, status, content, error_type)
    return found


def indexed_clips(store: Store) -> dict[tuple[str, int], str | None]:
    """The clip's key of every record in the index, by name and attempt; earlier attempts as far as they are there."""
    table = _read_parts(store, columns=["record", "attempt", "clip"])
    names, attempts, clips = (table[name].to_pylist() for name in ("record", "attempt", "clip"))
    return {(name, attempt or 1): clip for name, attempt, clip in zip(names, attempts, clips, strict=True)}


@dataclass(frozen=True, slots=True, order=True)
class RenderedWith:
    """A model that clips were rendered with: variant, fingerprint, dtype and quantization of its DiT, in a run."""

    variant: str
    transformer: str
    dtype: str
    quantization: str
    run_id: str


def rendered_with(store: Store) -> set[RenderedWith]:
    """All models that the clips in the index are of; "" for what their records do not say."""
    table = _read_parts(store, columns=["status", "variant", "weights", "rendered_on", "run_id"])
    table = table.filter(pc.equal(table["status"], "ok"))
    looked_up = {
        name: pc.map_lookup(table[column].cast(_TEXTS), pa.scalar(name), "first")
        for column, name in (("weights", "transformer"), ("rendered_on", "dtype"), ("rendered_on", "quantization"))
    }
    kinds = pa.table({"variant": table["variant"], **looked_up, "run_id": table["run_id"]})
    found = kinds.group_by(kinds.column_names).aggregate([]).to_pylist()
    return {RenderedWith(**{name: value or "" for name, value in kind.items()}) for kind in found}


def read_index(store: Store) -> pa.Table:
    """The index, one row per record name: its last attempt.

    A column that some parts lack is null there, an int column that others have as float is float; StorageError when
    parts disagree beyond that. Without any part: no rows, the fixed columns.
    """
    return _last_attempts(_read_parts(store))


def compact_index(store: Store, *, run_id: str) -> int:
    """Put all parts into one, with one row per record name, and remove them; how many there were.

    For when no run is writing; readers at work lose nothing. Earlier attempts are history, which the records keep.
    """
    keys = _part_keys(store)
    if len(keys) > 1:
        _put_part(store, f"{INDEX}/part-{run_id}-all.parquet", read_index(store))
        for key in keys:
            store.delete(key)
    return len(keys)


def _put_part(store: Store, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put(key, buffer.getvalue())


def _part_keys(store: Store) -> list[str]:
    return [f"{INDEX}/{name}" for name in store.names(INDEX) if name.endswith(".parquet")]


def _read_parts(store: Store, *, columns: list[str] | None = None) -> pa.Table:
    """All parts as one table; when one was compacted away since it was listed, all are listed anew."""
    empty = _FIXED.empty_table()
    while True:
        keys = _part_keys(store)
        try:
            tables = [_read_part(store, key, columns) for key in keys]
            break
        except StorageError:
            if set(keys) <= set(_part_keys(store)):
                raise
    with failing_as(StorageError, f"the parts of {store.location(INDEX)!r} disagree about a column"):
        return pa.concat_tables([empty.select(columns) if columns else empty, *tables], promote_options="permissive")


def _read_part(store: Store, key: str, columns: list[str] | None = None) -> pa.Table:
    with failing_as(StorageError, f"cannot read the index part {store.location(key)!r}"), store.open(key) as file:
        part = pq.ParquetFile(file)
        return part.read(columns and [name for name in columns if name in part.schema_arrow.names])


def _last_attempts(table: pa.Table) -> pa.Table:
    """One row per record name. Two runs may have indexed the same record: the first row of those stays."""
    names, attempts = table["record"].to_pylist(), table["attempt"].to_pylist()
    last: dict[str, int] = {}
    for row, name in enumerate(names):
        known = last.get(name)
        if known is None or (attempts[known] or 1) < (attempts[row] or 1):
            last[name] = row
    return table if len(last) == len(names) else table.take(pa.array(sorted(last.values()), pa.int64()))


def _columns_of_extras(extra_columns: Mapping[str, str]) -> dict[str, str]:
    """Index column per extra: its own name, or manifest.<name> where that is a column of ours."""
    taken = {*_FIXED.names, *extra_columns}
    columns = {}
    for name, kind in extra_columns.items():
        if kind not in _EXTRA_TYPES:
            raise ConfigError(f"column {name!r} has type {kind!r}; an index column is one of {', '.join(_EXTRA_TYPES)}")
        column = name
        if name in _FIXED.names:
            while column in taken:
                column = f"manifest.{column}"
            taken.add(column)
        columns[name] = column
    return columns


def _fixed_values(record: Record) -> dict[str, object]:
    values = record.model_dump(exclude={"name", "extra", "extension", "inputs", "seconds", *_MAPS})
    for name, value in (("inputs", record.inputs), ("vace", record.vace), ("extension", record.extension)):
        values[name] = json.dumps(value, ensure_ascii=False) if value else None
    seconds = {f"seconds_{stage}": record.seconds.get(stage) for stage in _STAGES}
    maps: dict[str, dict[str, str]] = {name: getattr(record, name) for name in _MAPS}
    return {"record": record.name, **values, **seconds, **{name: list(map.items()) for name, map in maps.items()}}


def _extra_value(value: JsonValue, type: pa.DataType, where: str) -> object:
    if value is not None and pa.types.is_string(type) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    try:
        return pa.scalar(value, type).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        logger.warning("%s does not fit its index column: %s", where, error)
        return None
