"""Plan: every row of a manifest looked at, without any model, before anything is rendered."""

import os
import signal
from array import array
from collections import Counter, deque
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import pyarrow as pa

from wan_ray.config import RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.errors import RequestError, WanRayError
from wan_ray.prompt.providers import check_extender
from wan_ray.request import FIELDS, id_of
from wan_ray.resolved import content_of, warnings_for
from wan_ray.stages.items import Item
from wan_ray.stages.read import bucket_of, open_manifest, parse_and_resolve, refused
from wan_ray.storage.manifest import Manifest, RowBatch
from wan_ray.storage.paths import file_stem
from wan_ray.variants import get_variant

_ROWS_WORTH_PROCESSES = 50_000  # a process takes a second to start, in which one plans some 15,000 rows
_MAX_PROCESSES = 8  # the one that merges has no time for more


@dataclass(kw_only=True)
class Plan:
    """What a manifest asks for. names, contents: of the records, by row number. refused: the rows that break a rule.

    bucket_of_row: by row number, the position in buckets counted from 1; 0 is a refused row. buckets count rows by
    shape, which is what work they are; warnings count what is allowed but unusual.
    """

    names: list[str] = field(default_factory=list)
    contents: list[str | None] = field(default_factory=list)
    bucket_of_row: "array[int]" = field(default_factory=lambda: array("I"))
    refused: list[Item] = field(default_factory=list)
    buckets: Counter[Bucket] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    extra_columns: dict[str, str] = field(default_factory=dict)


class SoundRow(NamedTuple):
    """What the plan keeps of a row that breaks no rule."""

    name: str
    id: str
    content: str
    bucket: Bucket
    warnings: tuple[str, ...]
    extends: bool


def plan_manifest(config: RenderConfig, *, limit: int | None = None) -> Plan:
    """Check every row (the first `limit`); ConfigError when the manifest as a whole is wrong, or prompts are to be
    extended and the key for it is missing.

    Images and videos are not opened, so that a million rows are planned in a minute. Many rows are shared among
    processes, which import the main module as multiprocessing's do: a script needs its `if __name__ == "__main__"`.
    """
    manifest = open_manifest(config)
    plan = Plan(extra_columns=_extra_columns(manifest))
    extends = False
    first_row_of: dict[str, int] = {}
    positions: dict[Bucket, int] = {}
    with closing(_planned(manifest, config, limit)) as batches:
        for batch, planned in batches:
            for number, alone in enumerate(planned, batch.first_row):
                row = alone
                if isinstance(alone, SoundRow) and alone.id in first_row_of:
                    values = batch.row(number)
                    row = refused(values, number, _repeats(values, first_row_of[alone.id]))
                plan.names.append(row.name)
                plan.contents.append(row.content)
                if isinstance(row, Item):
                    plan.refused.append(row)
                    plan.bucket_of_row.append(0)
                    continue
                first_row_of[row.id] = number
                extends = extends or row.extends
                plan.buckets[row.bucket] += 1
                plan.bucket_of_row.append(positions.setdefault(row.bucket, len(positions) + 1))
                plan.warnings.update(row.warnings)
    if extends and config.extend is not None:
        check_extender(config.extend)
    return plan


def plan_rows(batch: RowBatch, config: RenderConfig) -> list[SoundRow | Item]:
    """What each row comes to, by itself: whether an id is another row's is for who sees all rows."""
    return [_plan_row(row, config, number) for number, row in batch.rows()]


def _plan_row(row: Mapping[str, object], config: RenderConfig, number: int) -> SoundRow | Item:
    try:
        _, request = parse_and_resolve(row, config)
    except RequestError as error:
        return refused(row, number, error)
    return SoundRow(
        name=file_stem(request.id),
        id=request.id,
        content=content_of(request),
        bucket=bucket_of(request),
        warnings=tuple(warnings_for(request, get_variant(request.variant))),
        extends=request.extend_prompt,
    )


def _planned(
    manifest: Manifest, config: RenderConfig, limit: int | None
) -> Generator[tuple[RowBatch, list[SoundRow | Item]]]:
    """The batches of the manifest in their order, planned, by several processes where there are rows for them."""
    batches = manifest.batches(limit=limit)
    processes = min(_num_cores(), _MAX_PROCESSES)
    num_rows = manifest.num_rows if limit is None else min(limit, manifest.num_rows)
    if processes == 1 or num_rows < _ROWS_WORTH_PROCESSES:
        for batch in batches:
            yield batch, plan_rows(batch, config)
        return
    workers = [_Worker(config) for _ in range(processes)]
    at_work: deque[tuple[_Worker, RowBatch]] = deque()
    try:
        for worker, batch in zip(workers, batches, strict=False):
            at_work.append((worker, worker.asked(batch)))
        while at_work:
            worker, batch = at_work.popleft()
            planned = worker.answer(batch)
            at_work.extend((worker, worker.asked(following)) for following in islice(batches, 1))
            yield batch, planned
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that plans one batch at a time. What it leaves undone when it dies, this process does."""

    def __init__(self, config: RenderConfig) -> None:
        spawn = get_context("spawn")  # a fork of a process with threads, as Arrow's and Ray's, may hang
        self._config = config
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, config), daemon=True)
        self._process.start()
        theirs.close()

    def asked(self, batch: RowBatch) -> RowBatch:
        """The batch, sent; before the next one its answer must be taken, or both would wait for each other."""
        with suppress(OSError):  # it is dead: answer() notices
            self._connection.send(batch)
        return batch

    def answer(self, batch: RowBatch) -> list[SoundRow | Item]:
        """What the batch that was sent comes to."""
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = plan_rows(batch, self._config)
        if isinstance(answer, WanRayError):
            raise answer
        return answer

    def end(self) -> None:
        """At once, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Connection, config: RenderConfig) -> None:
    # Ctrl-C goes to all processes of a terminal; the one that asked for the plan ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):  # the one that asked has died
        while True:
            batch = connection.recv()
            try:
                answer = plan_rows(batch, config)
            except WanRayError as error:
                answer = error
            connection.send(answer)


def _num_cores() -> int:
    """Those this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _repeats(row: Mapping[str, object], first: int) -> RequestError:
    given = id_of(row)
    if given is None:
        return RequestError(f"id: none, and the content is row {first}'s; drop one of them, or give each an id")
    return RequestError(f"id: {given!r} is row {first}'s already; give every row another id")


def _extra_columns(manifest: Manifest) -> dict[str, str]:
    """Columns that are not ours and what the index stores them as; nested values become JSON text."""
    tests = (("bool", pa.types.is_boolean), ("int", pa.types.is_integer), ("float", pa.types.is_floating))
    return {
        column.name: next((kind for kind, test in tests if test(column.type)), "str")
        for column in manifest.schema
        if column.name not in FIELDS
    }
