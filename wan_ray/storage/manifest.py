"""Manifest: the rows, from Parquet files, in shards that any process can read. What a row means is not here."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from wan_ray.errors import ConfigError, StorageError
from wan_ray.storage.blob import failing_as, open_filesystem
from wan_ray.wording import without_secrets

_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20
_NUM_READERS = 16


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One row group: rows first_row to first_row + num_rows of the manifest, counted over its files in sorted order."""

    file: str
    row_group: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """About a thousand rows of one file, numbered from first_row, as Arrow holds them; cheap to pickle."""

    first_row: int
    values: pa.RecordBatch
    place: str

    def rows(self) -> Iterator[tuple[int, dict[str, object]]]:
        """Row numbers and rows; ConfigError when a value is not sound."""
        with failing_as(ConfigError, f"{self.place} holds a value that is not sound"):
            columns = [_values(column) for column in self.values.columns]
        for number, values in enumerate(zip(*columns, strict=True), self.first_row):
            yield number, dict(zip(self.values.schema.names, values, strict=True))

    def row(self, number: int) -> dict[str, object]:
        """The row of that number, which is one of the batch's."""
        alone = replace(self, first_row=number, values=self.values.slice(number - self.first_row, 1))
        return next(alone.rows())[1]


class Manifest:
    """A Parquet file, or a folder of them (subfolders too), by local path or fsspec URL; can be pickled.

    Only footers are read at construction. Raises ConfigError when there is nothing, or something else than Parquet.
    """

    def __init__(self, source: str) -> None:
        self._source = without_secrets(source)
        self._filesystem, path = open_filesystem(source)
        with failing_as(ConfigError, f"cannot read the manifest {self._source!r}"):
            files = self._find(path)
            with ThreadPoolExecutor(_NUM_READERS) as pool:
                footers = list(pool.map(self._footer, files))
        self.schema = self._unified(files, [schema for schema, _ in footers])
        self._shards: list[Shard] = []
        self.num_rows = 0
        for file, (_, group_sizes) in zip(files, footers, strict=True):
            for row_group, num_rows in enumerate(group_sizes):
                shard = Shard(file=file, row_group=row_group, first_row=self.num_rows, num_rows=num_rows)
                self._shards.append(shard)
                self.num_rows += num_rows

    def shards(self) -> list[Shard]:
        """The pieces of the manifest, in row order."""
        return list(self._shards)

    def rows(self, shards: Iterable[Shard] | None = None) -> Iterator[tuple[int, dict[str, object]]]:
        """Row numbers and rows of the shards (all of them when None).

        A row has the columns of its own file; a map column is a dict. StorageError when reading fails midway.
        """
        for batch in self.batches(shards):
            yield from batch.rows()

    def batches(self, shards: Iterable[Shard] | None = None, *, limit: int | None = None) -> Iterator[RowBatch]:
        """The rows of the shards (all of them when None), the first `limit` of these; one batch is held at a time."""
        left = self.num_rows if limit is None else max(limit, 0)
        for file, group in groupby(self._shards if shards is None else shards, attrgetter("file")):
            if left == 0:
                return
            with failing_as(StorageError, f"cannot open {file!r}"):
                opened = self._filesystem.open(file, "rb")
            with opened:
                with failing_as(StorageError, f"cannot read {file!r}"):
                    # A buffer instead of pre_buffer: a row group may be larger than the memory to read it in.
                    parquet = pq.ParquetFile(opened, pre_buffer=False, buffer_size=_BUFFER_BYTES)
                for batch in _batches(parquet, group):
                    if left == 0:
                        return
                    wanted = batch.values.slice(0, left)
                    left -= len(wanted)
                    yield replace(batch, values=wanted)

    def _find(self, path: str) -> list[str]:
        if not self._filesystem.exists(path):
            raise ConfigError(
                f"manifest {self._source!r} does not exist; give a Parquet file, a folder of them, or a URL of either"
            )
        if self._filesystem.isfile(path):
            return [path]
        files = sorted(
            file for file in cast(list[str], self._filesystem.find(path)) if _is_data(file.removeprefix(path))
        )
        if not files:
            raise ConfigError(
                f"manifest folder {self._source!r} has no file named *.parquet; put one there, or name a file"
            )
        return files

    def _footer(self, file: str) -> tuple[pa.Schema, list[int]]:
        """The schema, and the number of rows in each row group."""
        try:
            with self._filesystem.open(file, "rb") as opened:
                metadata = pq.read_metadata(opened)
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"manifest file {file!r} is not Parquet ({error}); write it with pandas.DataFrame.to_parquet or pyarrow"
            ) from error
        schema = metadata.schema.to_arrow_schema()
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise ConfigError(f"manifest file {file!r} has columns of the same name: {twice}; rename or drop them")
        return schema, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def _unified(self, files: list[str], schemas: list[pa.Schema]) -> pa.Schema:
        unified = schemas[0]
        for file, schema in zip(files, schemas, strict=True):
            try:
                unified = pa.unify_schemas([unified, schema], promote_options="permissive")
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ConfigError(
                    f"manifest file {file!r} and the files before it give a column different types ({error}); "
                    "cast it to one type"
                ) from error
        return unified


def _is_data(path_in_folder: str) -> bool:
    """Parquet by name, and not hidden: engines keep their own notes under names with _ or . in front."""
    parts = path_in_folder.strip("/").split("/")
    return path_in_folder.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)


def _batches(parquet: pq.ParquetFile, shards: Iterable[Shard]) -> Iterator[RowBatch]:
    for shard in shards:
        place, number = f"row group {shard.row_group} of {shard.file!r}", shard.first_row
        batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[shard.row_group])
        while True:
            with failing_as(StorageError, f"cannot read {place}"):
                values = next(batches, None)
            if values is None:
                break
            yield RowBatch(first_row=number, values=values, place=place)
            number += len(values)


def _values(column: pa.Array) -> list[object]:
    values = column.to_pylist()
    if pa.types.is_map(column.type):
        return [None if pairs is None else dict(pairs) for pairs in values]
    return values
