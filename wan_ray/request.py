"""RenderRequest: one manifest row, and every rule about a row that holds for any model; resolve() adds the model's.

A rule stands in one place (that of the column `vace` in vace_request.py) and says value, rule and fix. Below this
module a request is trusted.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

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
from wan_ray.row_values import Count, Media, Number, content_id, jsonable, map_of_pairs, plain, text_of_number
from wan_ray.vace_request import VaceMode, inferred_mode, media_of, options_of, parse_vace
from wan_ray.variants import TASK_DEFAULTS, Preset, Solver, Task, Variant
from wan_ray.wording import in_words

MAX_PROMPT_CHARS = 5000
MAX_SIDE = 16384  # the rotary table has 1024 positions of 16 pixels per axis
MAX_FRAMES = 4093  # 1024 latent frames
MAX_SEED = 2**63 - 1

_CONTROL = re.compile(r"[\x00-\x1f]")

T = TypeVar("T")
Compat = Literal["released"]
MEDIA_FIELDS = ("image", "last_image", "control_video", "mask_video", "reference_images")
# What resolve() decides of how a clip is made, whatever the task.
RESOLVED_FIELDS = (
    "width",
    "height",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "solver",
    "negative_prompt",
)
_MEDIA_OF: dict[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {  # task -> (must have, may have)
    "t2v": ((), ()),
    "t2i": ((), ()),
    "i2v": (("image",), ()),
    "flf2v": (("image", "last_image"), ()),
    "vace": ((), ("control_video", "mask_video", "reference_images")),
}
_UNFIT: dict[object, frozenset[str]] = {  # task -> fields whose defaults mean nothing to it
    task: frozenset(MEDIA_FIELDS).difference(*media) | (frozenset() if task == "vace" else {"context_scale"})
    for task, media in _MEDIA_OF.items()
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
    if not value.strip() or len(value) > 500 or _CONTROL.search(value):
        raise ValueError(f"{value[:40]!r} must be 1 to 500 characters without control characters")
    return value


Side = Annotated[Count, Field(ge=16, le=MAX_SIDE), AfterValidator(_multiple_of_16)]
Frames = Annotated[Count, Field(ge=1, le=MAX_FRAMES), AfterValidator(_four_n_plus_one)]


class RenderRequest(BaseModel):
    """What to render. None means: the default of the task and model.

    width and height are pixels of the result, fps is frames per second of the file and changes no pixel but where a
    video is read at it, seed draws the noise, vace is what its task does (see vace_request.py), compat asks for the
    released code's ways where ours are others. Rules broken raise pydantic's ValidationError; parse_row turns it into
    RequestError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: Annotated[str, BeforeValidator(text_of_number), AfterValidator(_sound_id)] | None = None
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
    vace: Annotated[VaceMode | None, BeforeValidator(parse_vace)] = None
    compat: Compat | None = None
    extend_prompt: bool = False
    labels: Annotated[dict[str, str], BeforeValidator(map_of_pairs)] = {}

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
        if self.vace is not None and self.task != "vace":
            broken.append(f"vace: only task 'vace' has one, not {self.task!r}; leave it empty")
        return broken + self._media_rules()

    def _media_rules(self) -> list[str]:
        broken: list[str] = []
        given = [f for f in MEDIA_FIELDS if getattr(self, f)]
        if not given and self.vace is None and not _MEDIA_OF[self.task][0]:
            return broken
        if self.vace is not None and self.task == "vace":
            broken += self._vace_rules(self.vace, given)
            needed, optional, kind, name = self.vace.needs, self.vace.takes, "mode", self.vace.mode
        else:
            # The released code drops a mask that comes alone.
            if self.mask_video and not self.control_video and self.compat is None:
                broken.append("mask_video: without a control_video there is nothing to keep; give both or neither")
            needed, optional, kind, name = *_MEDIA_OF[self.task], "task", self.task
        broken += [f"{f}: {kind} {name!r} needs one" for f in needed if f not in given]
        broken += [
            f"{f}: {kind} {name!r} takes none; leave it empty or change the {kind}"
            for f in given
            if f not in (*needed, *optional)
        ]
        return broken

    def _vace_rules(self, mode: VaceMode, given: list[str]) -> list[str]:
        broken = mode.broken_rules(given)
        masks, references = len(mode.reference_masks or ()), len(self.reference_images or ())
        if mode.reference_masks is not None and masks != references:
            broken.append(
                f"vace: {masks} reference_masks for {references} reference_images; give one for each, or none"
            )
        if self.compat is not None:
            broken.append("vace: the released code knows no modes; leave either vace or compat empty")
        return broken


FIELDS = tuple(RenderRequest.model_fields)
_FIELD_SET = frozenset(FIELDS)


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A request with every default filled in for one model.

    width and height are 0 where a first image will decide them, fps where a video may; media holds paths, URLs and
    data URLs by field. vace: the options of its mode, but for the sources among them, which are in media.
    extend_prompt: the prompt is to be rewritten, or was.
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
    vace: Mapping[str, JsonValue] = field(default_factory=dict)
    compat: Compat | None = None
    extend_prompt: bool = False


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
    given = {k: v for k, value in row.items() if k in _FIELD_SET and (v := plain(value)) is not None}
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
    unfit = _UNFIT.get(task) if isinstance(task, str) else None
    if unfit is None:
        unfit = frozenset(MEDIA_FIELDS)
    if (task == "t2i") != (defaults.get("num_frames") == 1):
        unfit |= {"num_frames"}
    return {k: v for k, v in defaults.items() if k not in unfit}


def check_columns(columns: Mapping[str, object] | list[str]) -> None:
    """Raise RequestError for a column that looks like one of ours, misspelt; others travel on into the index."""
    if found := misspelt(tuple(columns), FIELDS):
        raise RequestError(f"column {found[0]!r} is not known; did you mean {found[1]!r}? Rename it")


def extra_values(row: Mapping[str, object]) -> dict[str, JsonValue]:
    """The columns of a row that are not ours, as JSON values."""
    return {k: jsonable(v) for k, v in row.items() if k not in _FIELD_SET}


def id_of(row: Mapping[str, object]) -> str | None:
    """The id that a row gives, as text; None when it gives none. It may break the rules of an id."""
    value = text_of_number(plain(row.get("id")))
    return None if value is None else str(value)


def content_of(request: ResolvedRequest) -> str:
    """16 hex digits that change with all that a clip follows from but its id, the weights and what lies at its media.

    What is empty does not count, so that a field that is added later changes no row that leaves it empty.
    """
    told = {name: value for name, value in vars(request).items() if value and name not in ("id", "labels")}
    # repr() is the fastest: a plan of a million rows makes as many.
    return hashlib.sha256(f"{told!r}{sorted(request.labels.items())!r}".encode()).hexdigest()[:16]


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


def resolve(
    request: RenderRequest, variant: Variant, preset: Preset | None = None, *, extends: bool = False
) -> ResolvedRequest:
    """Fill in what preset, task and model decide; RequestError when this model cannot render it.

    extends: whether there is an extender for rows that ask for one.
    """
    if request.task not in variant.tasks:
        choose_variant(request, [variant])
    if request.extend_prompt and not extends:
        raise RequestError(
            "extend_prompt: true, but no prompt extender is configured; add `extend` to the config, or extend the "
            "prompts beforehand with `wan-ray extend`"
        )
    default = TASK_DEFAULTS[request.task]
    sampler = preset or default
    flow_shift = sampler.flow_shift if preset or variant.flow_shift is None else variant.flow_shift
    shaped_by_image = "image" in _MEDIA_OF[request.task][0]
    width, height = (0, 0) if shaped_by_image else variant.sizes[0]
    width, height = request.width or width, request.height or height
    if width * height > variant.max_pixels:
        raise RequestError(
            f"width={width}, height={height}: {width * height} pixels are more than {variant.name}'s "
            f"{variant.max_pixels}; make it smaller, e.g. {_sizes(variant)}"
        )
    num_frames = _or(request.num_frames, default.num_frames)
    media, vace = _media(request), {}
    if request.task == "vace":
        mode = request.vace or inferred_mode(media)
        mode.check_fits(width=width, height=height, num_frames=num_frames)
        vace = options_of(mode)
    # A source slower than the usual rate is followed; the released code writes that rate for any.
    follows = request.compat is None and any(name in media for name in ("control_video", "first", "last"))
    request_id = request.id or content_id(request.model_dump(exclude_defaults=True))
    return ResolvedRequest(
        id=request_id,
        variant=variant.name,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=_or(request.negative_prompt, default.negative_prompt),
        width=width,
        height=height,
        num_frames=num_frames,
        fps=_or(request.fps, 0.0 if follows else default.fps),
        num_inference_steps=_or(request.num_inference_steps, sampler.num_inference_steps),
        guidance_scale=_or(request.guidance_scale, sampler.guidance_scale),
        flow_shift=_or(request.flow_shift, flow_shift),
        solver=request.solver or sampler.solver,
        seed=_or(request.seed, seed_from_id(request_id)),
        context_scale=_or(request.context_scale, 1.0),
        labels=request.labels,
        media=media,
        vace=vace,
        compat=request.compat,
        extend_prompt=request.extend_prompt,
    )


def _media(request: RenderRequest) -> dict[str, list[str]]:
    sources = {name: value for name in MEDIA_FIELDS if (value := getattr(request, name))}
    if request.vace is not None:
        sources |= media_of(request.vace)
    return {name: _sources(value) for name, value in sources.items()}


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
    if "mask_video" in request.media and "control_video" not in request.media:
        found.append("a mask_video without a control_video is dropped, as in the released code")
    return found


def _sizes(variant: Variant) -> str:
    return ", ".join(f"{w}x{h}" for w, h in variant.sizes)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
