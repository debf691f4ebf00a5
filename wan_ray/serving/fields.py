"""The fields of a body as a wish: a manifest row, media still to be fetched, and what is about the job alone."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from pydantic import JsonValue

from wan_ray.columns import misspelt
from wan_ray.config import RenderConfig
from wan_ray.request import FIELDS, MEDIA_FIELDS
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.forms import Field, Held, Upload
from wan_ray.variants import TASK_DEFAULTS, TASKS, Variant, get_variant
from wan_ray.wording import shown

ROW_FIELDS = tuple(name for name in FIELDS if name != "id")
# What OpenAI's clients and other servers of Wan2.1 call our fields.
ALIASES = {
    "input_reference": "image",
    "last_frame": "last_image",
    "control_mask": "mask_video",
    "prompt_extend": "extend_prompt",
    "num_outputs_per_prompt": "n",
}
JOB_FIELDS = ("model", "seconds", "size", "n", "priority", "deadline_s", "webhook_url", "metadata")
_WITHOUT_MEANING = frozenset({"user", "safety_identifier"})  # of OpenAI's: who asks is known by the key
_VACE_MEDIA = ("first", "last", "reference_masks")
_MAX_MEDIA = 16
_MAX_PAIRS, _MAX_NAME_CHARS, _MAX_VALUE_CHARS = 16, 64, 512
_MAX_PRIORITY = 100
_MAX_DEADLINE_S = 7 * 86400.0
MAX_SECONDS = 600.0
_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})")
_MODEL_PREFIX = re.compile(r"wan-?2\.1[-_]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image or video for a field: a file, or a data URL or http(s) URL that a client gave."""

    field: str
    value: Upload | Held | str


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a body asks for. row has a marker, a key of media, where a source stands; what is there is not checked yet.

    variant: the model that the client named, if any. seconds and size are as the client wrote them.
    """

    row: Mapping[str, object]
    media: Mapping[str, Source]
    variant: str | None = None
    seconds: str | None = None
    size: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    webhook_url: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_wish(given: Mapping[str, Field], config: RenderConfig, *, task: str | None = None) -> Wish:
    """The wish in a body's fields; ApiError 400 names the field that is not known, or has no such value.

    task is that of rows which name none and whose media tell nothing; without it, what the model was made for.
    """
    fields = _known_fields(given)
    job = {name: fields.pop(name) for name in JOB_FIELDS if name in fields}
    if "prompt" not in fields:
        raise ApiError(400, "missing_required_parameter", "prompt: missing; describe the clip in words", param="prompt")
    variants = _variants(job.get("model"), config)
    row: dict[str, Any] = dict(fields)
    if "labels" in row:
        row["labels"] = _pairs("labels", row["labels"])
    if "vace" in row:
        row["vace"] = _vace(row["vace"])
    if isinstance(text := row.get("reference_images"), str) and text[:1] == "[":
        row["reference_images"] = _json("reference_images", text)
    media = _take_media_(row)
    row.setdefault("task", _task(row, variants, config, otherwise=task))
    if job.get("n") not in (None, 1, "1"):
        refuse("n", f"{shown(job['n'])}; a request renders one, so send as many requests as you want clips")
    seconds, size = job.get("seconds"), job.get("size")
    if seconds is not None:
        _apply_seconds_(row, seconds, config)
    if size is not None:
        _apply_size_(row, size)
    return Wish(
        row=row,
        media=media,
        variant=None if job.get("model") is None else variants[0].name,
        seconds=None if seconds is None else str(seconds),
        size=None if size is None else str(size),
        priority=whole("priority", job.get("priority", 0), -_MAX_PRIORITY, _MAX_PRIORITY),
        deadline_s=number_above_0("deadline_s", job.get("deadline_s"), _MAX_DEADLINE_S),
        webhook_url=_text("webhook_url", job.get("webhook_url")),
        metadata=_pairs("metadata", job.get("metadata")),
    )


def variant_named(name: str, config: RenderConfig) -> Variant | None:
    """The config's model of that name, in any case, with or without "wan2.1-" before it."""
    wanted = _MODEL_PREFIX.sub("", name, count=1).lower()
    return next((get_variant(m.variant) for m in config.all_models if m.variant.lower() == wanted), None)


def _known_fields(given: Mapping[str, Field]) -> dict[str, Field]:
    """The fields under our names, without nulls; ApiError for one that is not ours, or that comes under two names."""
    known = (*ROW_FIELDS, *JOB_FIELDS)
    fields: dict[str, Field] = {}
    for name, value in given.items():
        ours = ALIASES.get(name, name)
        if value is None or name in _WITHOUT_MEANING:
            continue
        if ours in fields:
            refuse(name, f"given beside {ours!r}, which means the same; give one of them")
        if ours not in known:
            found = misspelt((name,), known)
            hint = f"did you mean {found[1]!r}?" if found else f"use some of {', '.join(known)}"
            refuse(name[:80], f"{shown(name)} is no field of a video; {hint}", code="unknown_parameter")
        fields[ours] = value
    return fields


def _variants(name: Field, config: RenderConfig) -> list[Variant]:
    if name is None:
        return [get_variant(section.variant) for section in config.all_models]
    found = variant_named(name, config) if isinstance(name, str) else None
    if found is None:
        known = ", ".join(section.variant for section in config.all_models)
        raise ApiError(
            404,
            "model_not_found",
            f"model: {shown(name)} is none of this server's; use one of {known}, or leave it out",
            param="model",
        )
    return [found]


def _task(
    row: Mapping[str, object], variants: Sequence[Variant], config: RenderConfig, *, otherwise: str | None
) -> str:
    """What a row without a task is: its media tell, else its model."""
    if any(name in row for name in ("vace", "control_video", "mask_video", "reference_images")):
        return "vace"
    if "last_image" in row:
        return "flf2v"
    if "image" in row:
        return "i2v"
    tasks = [name for variant in variants for name in variant.tasks]
    wanted = [otherwise, config.defaults.get("task"), "t2v"]
    return next((str(name) for name in wanted if name in tasks), tasks[0])


def _take_media_(row: dict[str, Any]) -> dict[str, Source]:
    """Replace the sources in a row by markers; the sources by marker."""
    media: dict[str, Source] = {}

    def taken(field: str, value: Field) -> str:
        if len(media) >= _MAX_MEDIA:
            refuse(field, f"more than {_MAX_MEDIA} images and videos in one request; send fewer")
        marker = f"{field.replace('.', '-')}-{len(media)}"
        media[marker] = Source(field=field, value=source_of(field, value))
        return marker

    def taken_all(field: str, value: Field) -> list[str]:
        return [taken(field, one) for one in (value if isinstance(value, list) else [value])]

    for name in MEDIA_FIELDS:
        if name in row:
            row[name] = taken_all(name, row[name]) if name == "reference_images" else taken(name, row[name])
    for name in _VACE_MEDIA:
        if (vace := row.get("vace")) and vace.get(name) is not None:
            vace[name] = (taken_all if name == "reference_masks" else taken)(f"vace.{name}", vace[name])
    return media


def _vace(value: Field) -> dict[str, Field]:
    """As an object of its own: only in one are sources found, of which none may be a path."""
    found = _json("vace", value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        refuse("vace", f'{shown(value)} is no object; write one such as {{"mode": "outpaint", "ratio": 0.25}}')
    return dict(found)


def source_of(field: str, value: Field) -> Upload | Held | str:
    """What a client gave for an image or video; ApiError 400 when it is none of that."""
    if isinstance(value, dict):
        if "file_id" in value:
            refuse(field, "file_id: there are no files here; send the file itself, a URL or a data URL")
        value = next((value[name] for name in ("image_url", "video_url", "url") if name in value), None)
        if isinstance(value, dict):
            value = value.get("url")
    if isinstance(value, Upload | Held):
        return value
    if not isinstance(value, str) or not re.match(r"(data:|https?://)", value, re.IGNORECASE):
        refuse(
            field,
            f"{shown(value)} is neither a file, a data URL nor an http(s) URL; send one of them",
        )
    return value


def _apply_seconds_(row: dict[str, Any], seconds: Field, config: RenderConfig) -> None:
    """The clip's frames: seconds at the row's rate, to the nearest 4n+1 of at least 5."""
    duration = number_above_0("seconds", seconds, MAX_SECONDS)
    task = row["task"]
    if duration is None or task not in TASKS or task == "t2i":
        return
    default = config.defaults.get("fps") or TASK_DEFAULTS[task].fps
    try:
        fps = float(row.get("fps", default))
    except (TypeError, ValueError):
        fps = math.nan
    if not 0 < fps <= 1000:
        return  # the row's own rules will say so
    num_frames = max(5, 4 * math.floor((duration * fps - 1) / 4 + 0.5) + 1)
    given = row.setdefault("num_frames", num_frames)
    if str(given) != str(num_frames):
        refuse(
            "num_frames",
            f"{shown(given)}, but {seconds} seconds at {fps:g} frames a second are {num_frames}; give one of the two",
        )


def _apply_size_(row: dict[str, Any], size: Field) -> None:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        refuse("size", f"{shown(size)} is not width x height in pixels; write it as in '832x480'")
    for name, value in zip(("width", "height"), map(int, found.groups()), strict=True):
        given = row.setdefault(name, value)
        if str(given) != str(value):
            refuse(name, f"{shown(given)} is not that of size {size!r}; give one of the two")


def whole(field: str, value: Field, low: int, high: int) -> int:
    """A whole number or its text; ApiError 400 for another value."""
    try:
        found = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        found = None
    if found is None or not low <= found <= high:
        refuse(field, f"{shown(value)} is not a whole number from {low} to {high}; give one")
    return found


def number_above_0(field: str, value: object, high: float) -> float | None:
    """A number or its text; None stays. ApiError 400 for another value."""
    if value is None:
        return None
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 < found <= high:
        refuse(field, f"{shown(value)} is not a number above 0, and at most {high:g}; give one")
    return found


def _text(field: str, value: Field) -> str | None:
    if value is not None and not isinstance(value, str):
        refuse(field, f"{shown(value)} is not text; write it as a string")
    return value


def _json(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(field, f"{shown(text)} is not JSON: {error}; write an object or a list")


def _pairs(field: str, value: Field) -> dict[str, str]:
    """Names to texts, as an object or its JSON text."""
    found: JsonValue | Field = _json(field, value) if isinstance(value, str) else value
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        refuse(field, f'{shown(value)} is not a map of names to texts; write an object such as {{"team": "a"}}')
    pairs = {name: str(text) for name, text in found.items()}
    if len(pairs) > _MAX_PAIRS:
        refuse(field, f"{len(pairs)} pairs are more than {_MAX_PAIRS}; send fewer")
    for name, text in pairs.items():
        if len(name) > _MAX_NAME_CHARS or len(text) > _MAX_VALUE_CHARS:
            refuse(
                field,
                f"{shown(name)}: a name may have {_MAX_NAME_CHARS} characters and its text {_MAX_VALUE_CHARS}",
            )
    return pairs


def refuse(field: str, message: str, *, code: str = "invalid_value") -> NoReturn:
    """Raise ApiError 400 that names the field."""
    raise ApiError(400, code, message if code != "invalid_value" else f"{field}: {message}", param=field)
