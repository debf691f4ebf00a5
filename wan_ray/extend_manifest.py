"""What `wan-ray extend` does: a manifest with its prompts rewritten, ahead of any run, and before and after to read."""

import json
import tempfile
import textwrap
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wan_ray.config import RenderConfig
from wan_ray.errors import ConfigError
from wan_ray.prompt.providers import check_extender
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item
from wan_ray.stages.read import open_manifest, read_row
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import alive

_SHOWN_ROWS = 20
_CHARS = 100
_ADDED = {"prompt_original": pa.string(), "extension": pa.string()}
_SET = {"id": pa.string(), "prompt": pa.string(), "extend_prompt": pa.bool_()}


@dataclass(kw_only=True)
class ExtendedManifest:
    """What became of the rows: counts by where a prompt came from, and the first ones to look at."""

    sources: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, str, str, str]] = field(default_factory=list)  # id, source, before, after or why not

    @property
    def num_failed(self) -> int:
        """Rows that break a rule, or are left to be extended."""
        return self.sources["invalid"] + self.sources["failed"]

    def lines(self) -> Iterator[str]:
        """For people."""
        for id, source, before, after in self.shown:
            yield f"{id}  ({source})"
            yield from _wrapped("before  ", before)
            yield from _wrapped("after   ", after)
        more = self.sources.total() - len(self.shown)
        if more > 0:
            yield f"and {more} more"
        counts = ", ".join(f"{number} {source}" for source, number in sorted(self.sources.items()))
        yield f"\n{self.sources.total()} rows: {counts}"


def extend_manifest(config: RenderConfig, source: str, out: str) -> ExtendedManifest:
    """Write the manifest `out`, whole or not at all; replies are kept in the config's output, or else beside it.

    A row keeps its columns and gets its id, prompt_original and extension; extend_prompt is false where it is done.
    ConfigError before anyone is asked when config or manifest cannot work. RunStoppedError when the service does not
    answer and that is to stop it: what was answered is kept, and the same call goes on from there.
    """
    section = config.extend
    if section is None:
        raise ConfigError("the config has no section `extend`; it says who rewrites prompts, e.g. provider: dashscope")
    check_extender(section)
    # A row that leaves it open is to be extended: that is what was asked for.
    config = config.model_copy(update={"manifest": source, "defaults": {**config.defaults, "extend_prompt": True}})
    manifest = open_manifest(config)
    if taken := sorted(_ADDED.keys() & set(manifest.schema.names)):
        raise ConfigError(
            f"manifest {source!r} has a column {taken[0]!r}, which is to be added; it was extended already"
        )
    schema = _schema(manifest.schema)
    folder, _, name = out.rpartition("/")
    folder = folder or ("/" if out.startswith("/") else ".")
    place, result = Store(folder), ExtendedManifest()
    kept = Store(config.output) if config.output is not None else place
    kept.check()
    run_id = f"extend-{uuid.uuid4().hex[:8]}"
    stage = ExtendStage(section, output=config.output or folder, run_id=run_id)
    rows, num_at_once = manifest.rows(), 4 * section.rows_at_once
    with alive(kept, run_id), tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        with pq.ParquetWriter(file.name, schema) as writer:
            while some := list(islice(rows, num_at_once)):
                items = [read_row(row, config, number=number) for number, row in some]
                ended = stage.extend(items)
                written = [_noted_(result, row, item) for (_, row), item in zip(some, ended, strict=True)]
                writer.write_table(pa.Table.from_pylist(written, schema=schema))
        place.put(name, Path(file.name).read_bytes())
    return result


def _noted_(result: ExtendedManifest, row: Mapping[str, object], item: Item) -> dict[str, Any]:
    """The row as it is written, counted and perhaps shown in the result."""
    before = item.prompt or ""
    changed: dict[str, object] = {}
    if item.request is None or item.failure is not None:
        source = "invalid" if item.request is None else "failed"
        after = item.failure.message if item.failure else ""
        changed = {"extend_prompt": row.get("extend_prompt") if item.request is None else True}
    elif not item.extension:
        source, after = "left alone", before
    else:
        source, after = str(item.extension["prompt_source"]), item.request.prompt
        extension = json.dumps(item.extension, ensure_ascii=False)
        changed = {"id": item.id, "prompt": after, "prompt_original": before, "extension": extension}
        changed["extend_prompt"] = False
    result.sources[source] += 1
    if len(result.shown) < _SHOWN_ROWS:
        result.shown.append((item.id, source, before, after))
    # A map is read as a dict and written as pairs.
    values = {**row, **changed}
    return {name: list(value.items()) if isinstance(value, dict) else value for name, value in values.items()}


def _schema(schema: pa.Schema) -> pa.Schema:
    for name, kind in {**_SET, **_ADDED}.items():
        column = pa.field(name, kind)
        index = schema.get_field_index(name)
        schema = schema.append(column) if index < 0 else schema.set(index, column)
    return schema


def _wrapped(head: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, _CHARS) or [""]
    for number, line in enumerate(lines):
        yield f"  {head if number == 0 else ' ' * len(head)}{line}"
