"""Read: manifest rows become items; a row that breaks a rule becomes a failed item. plan_manifest looks at all rows."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from wan_ray.config import RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.errors import ConfigError, RequestError, StageError, StorageError
from wan_ray.media.check import MediaCheck
from wan_ray.prompt.providers import check_extender
from wan_ray.request import FIELDS, ParsedRow, check_columns, content_id, extra_values, id_of, parse_row
from wan_ray.resolved import ResolvedRequest, choose_variant, content_of, resolve, warnings_for
from wan_ray.stages.items import Item
from wan_ray.storage.manifest import Manifest
from wan_ray.storage.paths import file_stem
from wan_ray.variants import PRESETS, get_variant


def read_row(
    row: Mapping[str, object], config: RenderConfig, *, number: int | None = None, variant: str | None = None
) -> Item:
    """The item of a manifest row, failed at "read" if the row breaks a rule. number counts rows from 0.

    variant: which of the config's models renders it; without, choose_variant says.
    """
    try:
        parsed, request = parse_and_resolve(row, config, variant=variant)
    except RequestError as error:
        return refused(row, number, error)
    return Item(
        name=file_stem(request.id),
        id=request.id,
        row=number,
        request=request,
        prompt=parsed.request.prompt,
        content=content_of(request),
        extra=parsed.extra,
    )


def parse_and_resolve(
    row: Mapping[str, object], config: RenderConfig, *, variant: str | None = None
) -> tuple[ParsedRow, ResolvedRequest]:
    """What a manifest row says, and what it comes to with the config's models and defaults; RequestError for a rule."""
    parsed = parse_row(row, config.defaults)
    models = [section for section in config.all_models if variant in (None, section.variant)]
    variants = [get_variant(section.variant) for section in models]
    chosen = choose_variant(parsed.request, variants)
    preset = PRESETS.get(models[variants.index(chosen)].preset or "")
    return parsed, resolve(parsed.request, chosen, preset, extends=config.extend is not None)


def with_media_checked(item: Item, check: MediaCheck) -> Item:
    """The item, failed at "read" when one of its images or videos cannot be used.

    Its record has the name that the row would have if all were well, unlike a refused row's: the plan opens no media,
    and a later run must find what became of the row. A mended file is thus another attempt at the same row.
    What keeps a source from being asked (a store that is down) is no verdict on it: the encode stage asks again.
    """
    if item.request is None:
        return item
    # The released code drops a mask that comes alone, and so do we where the row asks for its ways.
    dropped = set() if "control_video" in item.request.media else {"mask_video"}
    try:
        check({name: sources for name, sources in item.request.media.items() if name not in dropped})
    except RequestError as error:
        return item.failed("read", error)
    except (StorageError, StageError):
        return item
    return item


def refused(row: Mapping[str, object], number: int | None, error: RequestError) -> Item:
    """A failed item for a row that cannot be rendered. Its name is its own, so that a mended row is a new one."""
    place = "" if number is None else f"{number:08d}-"
    content, prompt = content_id(row), row.get("prompt")
    return Item(
        name=f"refused-{place}{content}",
        id=id_of(row) or content,
        row=number,
        request=None,
        prompt=prompt if isinstance(prompt, str) else None,
        extra=extra_values(row),
    ).failed("read", error)


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


def plan_manifest(config: RenderConfig, *, limit: int | None = None) -> Plan:
    """Check every row (the first `limit`), without any model; ConfigError when the manifest as a whole is wrong,
    or prompts are to be extended and the key for it is missing.

    Images and videos are not opened, so that a million rows are planned in a minute.
    """
    manifest = open_manifest(config)
    plan = Plan(extra_columns=_extra_columns(manifest))
    extends = False
    first_row_of: dict[str, int] = {}
    positions: dict[Bucket, int] = {}
    for number, row in manifest.rows():
        if limit is not None and number >= limit:
            break
        item = read_row(row, config, number=number)
        if item.request is not None and item.id in first_row_of:
            item = refused(row, number, _repeats(row, first_row_of[item.id]))
        plan.names.append(item.name)
        plan.contents.append(item.content)
        if item.request is None:
            plan.refused.append(item)
            plan.bucket_of_row.append(0)
            continue
        first_row_of[item.id] = number
        extends = extends or item.request.extend_prompt
        bucket = bucket_of(item.request)
        plan.buckets[bucket] += 1
        plan.bucket_of_row.append(positions.setdefault(bucket, len(positions) + 1))
        plan.warnings.update(warnings_for(item.request, get_variant(item.request.variant)))
    if extends and config.extend is not None:
        check_extender(config.extend)
    return plan


def _repeats(row: Mapping[str, object], first: int) -> RequestError:
    given = id_of(row)
    if given is None:
        return RequestError(f"id: none, and the content is row {first}'s; drop one of them, or give each an id")
    return RequestError(f"id: {given!r} is row {first}'s already; give every row another id")


def open_manifest(config: RenderConfig) -> Manifest:
    """The config's manifest; ConfigError when there is none, or a column is a misspelt one of ours."""
    if config.manifest is None:
        raise ConfigError("no manifest: set manifest in the config or give --manifest")
    manifest = Manifest(config.manifest)
    try:
        check_columns(manifest.schema.names)
    except RequestError as error:
        raise ConfigError(f"manifest {config.manifest!r}: {error}") from None
    if "prompt" not in manifest.schema.names:
        raise ConfigError(f"manifest {config.manifest!r} has no column 'prompt'; it has {manifest.schema.names}")
    return manifest


def read_pending(manifest: Manifest, config: RenderConfig, bucket_of_row: "array[int]") -> Iterator[Item]:
    """Items of the rows to render, which the plan has found sound, bucket by bucket: one pass over the rows for each.

    bucket_of_row is 0 for rows to leave out. Rows of one shape follow each other, so that compiled kernels are reused.
    Only here are images and videos opened, a row at a time, and a source that rows share once.
    """
    check = MediaCheck()
    for bucket in sorted(set(bucket_of_row) - {0}):
        for number, row in manifest.rows():
            if number >= len(bucket_of_row):
                break
            if bucket_of_row[number] == bucket:
                yield with_media_checked(read_row(row, config, number=number), check)


def bucket_of(request: ResolvedRequest) -> Bucket:
    """Rows of one bucket are the same work."""
    return Bucket(
        variant=request.variant,
        task=request.task,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        num_passes=1 if request.guidance_scale == 1 else 2,
        num_references=len(request.media.get("reference_images", ())),
    )


def _extra_columns(manifest: Manifest) -> dict[str, str]:
    """Columns that are not ours and what the index stores them as; nested values become JSON text."""
    tests = (("bool", pa.types.is_boolean), ("int", pa.types.is_integer), ("float", pa.types.is_floating))
    return {
        column.name: next((kind for kind, test in tests if test(column.type)), "str")
        for column in manifest.schema
        if column.name not in FIELDS
    }
