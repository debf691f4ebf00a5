"""RenderRequest: one manifest row, and every rule about a row that holds for any model; resolved.py adds the model's.

A rule stands in one place (that of the column `vace` in vace_request.py) and says value, rule and fix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

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
from wan_ray.vace_request import VaceMode, parse_vace
from wan_ray.variants import Quality, Solver, Task
from wan_ray.wording import in_words

MAX_PROMPT_CHARS = 5000
MAX_SIDE = 16384  # the rotary table has 1024 positions of 16 pixels per axis
MAX_FRAMES = 4093  # 1024 latent frames
MAX_SEED = 2**63 - 1

_CONTROL = re.compile(r"[\x00-\x1f]")

Compat = Literal["released"]
MEDIA_FIELDS = ("image", "last_image", "control_video", "mask_video", "reference_images")
MEDIA_OF: dict[Task, tuple[tuple[str, ...], tuple[str, ...]]] = {  # task -> (must have, may have)
    "t2v": ((), ()),
    "t2i": ((), ()),
    "i2v": (("image",), ()),
    "flf2v": (("image", "last_image"), ()),
    "vace": ((), ("control_video", "mask_video", "reference_images")),
}
_UNFIT: dict[object, frozenset[str]] = {  # task -> fields whose defaults mean nothing to it
    task: frozenset(MEDIA_FIELDS).difference(*media) | (frozenset() if task == "vace" else {"context_scale"})
    for task, media in MEDIA_OF.items()
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
    released code's ways where ours are others. quality names a set of shortcuts, each of which is a field too:
    step_cache is the relative change below which a step takes over what was computed before (0: never),
    guidance_start and guidance_stop are the part of the steps, 0 to 1, in which guidance runs. Rules broken raise
    pydantic's ValidationError; parse_row turns it into RequestError.
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
    quality: Quality | None = None
    step_cache: Number | None = Field(None, ge=0, le=1)
    guidance_start: Number | None = Field(None, ge=0, le=1)
    guidance_stop: Number | None = Field(None, ge=0, le=1)
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
        if not given and self.vace is None and not MEDIA_OF[self.task][0]:
            return broken
        if self.vace is not None and self.task == "vace":
            broken += self._vace_rules(self.vace, given)
            needed, optional, kind, name = self.vace.needs, self.vace.takes, "mode", self.vace.mode
        else:
            # The released code drops a mask that comes alone.
            if self.mask_video and not self.control_video and self.compat is None:
                broken.append("mask_video: without a control_video there is nothing to keep; give both or neither")
            needed, optional, kind, name = *MEDIA_OF[self.task], "task", self.task
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
