"""Read: manifest rows become items; a row that breaks a rule becomes a failed item."""

from array import array
from collections.abc import Iterator, Mapping

from wan_ray.config import RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.errors import ConfigError, RequestError, StageError, StorageError
from wan_ray.media.check import MediaCheck
from wan_ray.request import ParsedRow, check_columns, content_id, extra_values, id_of, parse_row
from wan_ray.resolved import ResolvedRequest, choose_variant, content_of, resolve
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
        num_unguided_steps=request.num_inference_steps - len(request.guided_steps),
        num_references=len(request.media.get("reference_images", ())),
    )
