"""RenderRequest: one manifest row, and every rule about a row that holds for any model; resolve() adds the model's.

A rule stands in one place and says value, rule and fix. Below this module a request is trusted.
"""

import base64
import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from wan_ray.columns import misspelt
from wan_ray.errors import RequestError
from wan_ray.variants import TASK_DEFAULTS, TASKS, Preset, Solver, Task, Variant
from wan_ray.wording import in_words, shown

MAX_PROMPT_CHARS = 5000
MAX_SIDE = 16384  # the rotary table has 1024 positions of 16 pixels per axis
MAX_FRAMES = 4093  # 1024 latent frames
MAX_SEED = 2**63 - 1

T = TypeVar("T")
MEDIA_FIELDS = ("image", "last_image", "control_video", "mask_video", "reference_images")
_MEDIA_OF: dict[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {  # task -> (must have, may have)
    "t2v": ((), ()),
    "t2i": ((), ()),
    "i2v": (("image",), ()),
    "flf2v": (("image", "last_image"), ()),
    "vace": ((), ("control_video", "mask_video", "reference_images")),
}


def _multiple_of_16(value: int) -> int:
    if value % 16:
        low = value // 16 * 16
        choices = f"{low} or {low + 16}" if low else "16"
        raise ValueError(f"{value} is not a multiple of 16; use {choices}")
    return value


def _four_n_plus_one(value: int) -> int:
    if value % 4 != 1:
        low = (value - 1) // 4 * 4 + 1
        choices = f"{low} or {low + 4}" if low > 0 else "1 or 5"
        raise ValueError(f"{value} is not 4n+1, the VAE's step in time; use {choices}")
    return value


def _readable_text(value: str) -> str:
    if len(value) > MAX_PROMPT_CHARS:
        raise ValueError(
            f"{len(value)} characters are more than {MAX_PROMPT_CHARS}; the text encoder reads 512 tokens, "
            "about 2000 characters of English: shorten it"
        )
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{value!r} has no text; describe the clip in words")
    return value


def _sound_id(value: str) -> str:
    if not value.strip() or len(value) > 500 or any(ord(c) < 32 for c in value):
        raise ValueError(f"{value[:40]!r} must be 1 to 500 characters without control characters")
    return value


def _text_of_number(value: object) -> object:
    """Ids are often numbers, and whole floats where pandas met a null in the column."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number; give one")
    return value


def _map_of_strings(value: object) -> object:
    """Arrow hands a map over as pairs and a struct with null for keys that other rows have."""
    if isinstance(value, list | tuple):
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in value):
            raise ValueError(f"{shown(value)} is not a map of strings; give a map, a struct or pairs of key and value")
        value = dict(value)
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _text_or_bytes(value: object) -> object:
    if not isinstance(value, str | bytes):
        raise ValueError(f"{shown(value)} is neither text (a path or URL) nor bytes; give one of them")
    return value


Media = Annotated[str | bytes, BeforeValidator(_text_or_bytes)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Side = Annotated[Count, Field(ge=16, le=MAX_SIDE), AfterValidator(_multiple_of_16)]
Frames = Annotated[Count, Field(ge=1, le=MAX_FRAMES), AfterValidator(_four_n_plus_one)]


class RenderRequest(BaseModel):
    """What to render. None means: the default of the task and model.

    width and height are pixels of the result, fps is frames per second of the file and changes no pixel,
    seed draws the noise. Rules broken raise pydantic's ValidationError; parse_row turns it into RequestError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: Annotated[str, BeforeValidator(_text_of_number), AfterValidator(_sound_id)] | None = None
    task: Task = "t2v"
    prompt: Annotated[str, AfterValidator(_not_blank), AfterValidator(_readable_text)]
    negative_prompt: Annotated[str, AfterValidator(_readable_text)] | None = None
    width: Side | None = None
    height: Side | None = None
    num_frames: Frames | None = None
    fps: Number | None = Field(None, gt=0, le=240)
    num_inference_steps: Count | None = Field(None, ge=1, le=1000)
    guidance_scale: Number | None = Field(None, ge=0, le=100)
    flow_shift: Number | None = Field(None, gt=0, le=100)
    solver: Solver | None = None
    seed: Count | None = Field(None, ge=0, le=MAX_SEED)
    image: Media | None = None
    last_image: Media | None = None
    control_video: Media | None = None
    mask_video: Media | None = None
    reference_images: list[Media] | None = None
    context_scale: Number | None = Field(None, ge=0, le=10)
    extend_prompt: bool = False
    labels: Annotated[dict[str, str], BeforeValidator(_map_of_strings)] = {}

    @model_validator(mode="after")
    def _fields_fit_the_task(self) -> "RenderRequest":
        if broken := self._task_rules():
            raise ValueError("; ".join(broken))
        return self

    def _task_rules(self) -> list[str]:
        broken = []
        if (self.width is None) != (self.height is None):
            broken.append(f"width={self.width}, height={self.height}: give both or neither")
        if self.task == "t2i" and self.num_frames not in (None, 1):
            broken.append(f"num_frames: {self.num_frames} for task 't2i', which renders 1; use task 't2v' for a clip")
        if self.task != "t2i" and self.num_frames == 1:
            broken.append(f"num_frames: 1 for task {self.task!r}; use task 't2i' for an image, or 5 or more")
        if self.context_scale is not None and self.task != "vace":
            broken.append(f"context_scale: only task 'vace' has one, not {self.task!r}; leave it empty")
        if self.mask_video and not self.control_video:
            broken.append("mask_video: without a control_video there is nothing to keep; give both or neither")
        required, optional = _MEDIA_OF[self.task]
        given = [f for f in MEDIA_FIELDS if getattr(self, f)]
        broken += [f"{f}: task {self.task!r} needs one" for f in required if f not in given]
        broken += [
            f"{f}: task {self.task!r} takes none; leave it empty or change the task"
            for f in given
            if f not in (*required, *optional)
        ]
        return broken


FIELDS = tuple(RenderRequest.model_fields)
_FIELD_SET = frozenset(FIELDS)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request with every default filled in for one model.

    width and height are 0 where a first image will decide them; media holds paths, URLs and data URLs by field.
    """

    id: str
    variant: str
    task: Task
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    flow_shift: float
    solver: Solver
    seed: int
    context_scale: float
    labels: Mapping[str, str]
    media: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ParsedRow:
    """A manifest row: its request, and the columns that are not ours as JSON values."""

    request: RenderRequest
    extra: Mapping[str, JsonValue]


def parse_row(row: Mapping[str, object], defaults: Mapping[str, object] | None = None) -> ParsedRow:
    """The request in a row; columns that are null take `defaults`, as far as these fit the row's task.

    RequestError names every field that breaks a rule, or where each is sound, the rules between them. Without an id
    the row gets a hash of its own content, so the same row has the same id anywhere.
    """
    check_columns(row)
    given = {k: v for k, value in row.items() if k in _FIELD_SET and (v := _plain(value)) is not None}
    extra = extra_values(row)
    try:
        request = RenderRequest.model_validate({**_fitting(defaults, given), **given} if defaults else given)
    except ValidationError as error:
        raise RequestError("; ".join(map(in_words, error.errors()))) from None
    if request.id is None:
        own = request.model_dump(include=set(given), exclude_defaults=True)
        request = request.model_copy(update={"id": content_id({**extra, **own})})
    return ParsedRow(request=request, extra=extra)


def _fitting(defaults: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Without what means nothing to the row's task: a manifest may mix tasks, its defaults need not suit all."""
    task = given.get("task", defaults.get("task", "t2v"))
    needed, optional = _MEDIA_OF[task] if task in TASKS else ((), ())
    unfit = {field for field in MEDIA_FIELDS if field not in (*needed, *optional)}
    if task != "vace":
        unfit.add("context_scale")
    if (task == "t2i") != (defaults.get("num_frames") == 1):
        unfit.add("num_frames")
    return {k: v for k, v in defaults.items() if k not in unfit}


def check_columns(columns: Mapping[str, object] | list[str]) -> None:
    """Raise RequestError for a column that looks like one of ours, misspelt; others travel on into the index."""
    if found := misspelt(tuple(columns), FIELDS):
        raise RequestError(f"column {found[0]!r} is not known; did you mean {found[1]!r}? Rename it")


def extra_values(row: Mapping[str, object]) -> dict[str, JsonValue]:
    """The columns of a row that are not ours, as JSON values."""
    return {k: _jsonable(v) for k, v in row.items() if k not in _FIELD_SET}


def id_of(row: Mapping[str, object]) -> str | None:
    """The id that a row gives, as text; None when it gives none. It may break the rules of an id."""
    value = _text_of_number(_plain(row.get("id")))
    return None if value is None else str(value)


def content_id(row: Mapping[str, object]) -> str:
    """16 hex digits that depend on the row's content alone, not on how a table held it.

    Nulls count as absent and 81.0 as 81: a column becomes float, a struct gets a key, because of other rows.
    """
    canonical = json.dumps(_canonical(_jsonable(row)), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def seed_from_id(request_id: str) -> int:
    """A seed below 2**53 (exact in JSON) that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") >> 11


def choose_variant(request: RenderRequest, variants: Sequence[Variant]) -> Variant:
    """The first that renders the task and was trained at the size; else the first that renders it at all.

    RequestError when none renders the task.
    """
    able = [variant for variant in variants if request.task in variant.tasks]
    if not able:
        known = "; ".join(f"{variant.name} renders {', '.join(variant.tasks)}" for variant in variants)
        raise RequestError(f"task: no model of this run renders {request.task!r}: {known}; add one or drop the row")
    return next((v for v in able if (request.width, request.height) in v.sizes), able[0])


def resolve(request: RenderRequest, variant: Variant, preset: Preset | None = None) -> ResolvedRequest:
    """Fill in what preset, task and model decide; RequestError when this model cannot render it."""
    choose_variant(request, [variant])
    if request.extend_prompt:
        raise RequestError("extend_prompt: true, but no prompt extender is configured; extend the prompts beforehand")
    default = TASK_DEFAULTS[request.task]
    sampler = preset or replace(default, flow_shift=_or(variant.flow_shift, default.flow_shift))
    shaped_by_image = "image" in _MEDIA_OF[request.task][0]
    width, height = (0, 0) if shaped_by_image else variant.sizes[0]
    width, height = request.width or width, request.height or height
    if width * height > variant.max_pixels:
        raise RequestError(
            f"width={width}, height={height}: {width * height} pixels are more than {variant.name}'s "
            f"{variant.max_pixels}; make it smaller, e.g. {_sizes(variant)}"
        )
    request_id = request.id or content_id(request.model_dump(exclude_defaults=True))
    return ResolvedRequest(
        id=request_id,
        variant=variant.name,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=_or(request.negative_prompt, default.negative_prompt),
        width=width,
        height=height,
        num_frames=_or(request.num_frames, default.num_frames),
        fps=_or(request.fps, default.fps),
        num_inference_steps=_or(request.num_inference_steps, sampler.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, sampler.guidance_scale),
        flow_shift=_or(request.flow_shift, sampler.flow_shift),
        solver=request.solver or sampler.solver,
        seed=_or(request.seed, seed_from_id(request_id)),
        context_scale=_or(request.context_scale, 1.0),
        labels=request.labels,
        media={name: _sources(value) for name in MEDIA_FIELDS if (value := getattr(request, name))},
    )


def _sources(value: str | bytes | list[str | bytes]) -> list[str]:
    """Media as text: bytes become data URLs."""
    return [
        one if isinstance(one, str) else "data:application/octet-stream;base64," + base64.b64encode(one).decode()
        for one in (value if isinstance(value, list) else [value])
    ]


def warnings_for(request: ResolvedRequest, variant: Variant) -> list[str]:
    """What is allowed but outside of what the model was trained for."""
    found = []
    if request.width and (request.width, request.height) not in variant.sizes and variant.architecture is not None:
        found.append(f"size {request.width}x{request.height} is outside {variant.name}'s trained {_sizes(variant)}")
    if request.num_frames > 81:
        found.append(f"num_frames {request.num_frames} is more than the 81 that Wan2.1 was trained on")
    return found


def _sizes(variant: Variant) -> str:
    return ", ".join(f"{w}x{h}" for w, h in variant.sizes)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


_PLAIN_TYPES = frozenset({type(None), str, int, bool, bytes, list, dict})
_JSON_TYPES = frozenset({type(None), str, int, bool})


def _plain(value: Any) -> Any:
    """A value of numpy, pandas or Arrow as Python's own; NaN and their nulls as None."""
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "as_py"):
        return _plain(value.as_py())
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _jsonable(value: Any) -> JsonValue:
    value = _plain(value)
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _canonical(value: Any) -> JsonValue:
    if type(value) in _JSON_TYPES:
        return value
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if value.is_integer() else value
