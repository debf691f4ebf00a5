"""What a row asks of VACE: the column `vace`, an object whose `mode` decides which other options it has.

Every rule about it is here; the frames, masks and references that a mode stands for are made in media/vace_row.py.
"""

import difflib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from wan_ray.errors import RequestError
from wan_ray.row_values import Count, Media, Number, map_of_pairs, plain_throughout
from wan_ray.wording import in_words, shown

Direction = Literal["left", "right", "up", "down"]
_SIDES: tuple[Direction, ...] = get_args(Direction)
_OPPOSITE_SIDES = (("left", "right"), ("up", "down"))
_OWN_MEDIA = ("first", "last", "reference_masks")


def _four_numbers(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise ValueError(f"{shown(value)} is no box; give left, top, right, bottom in pixels of the clip")
    return value


def _right_way_round(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise ValueError(f"{list(box)} has no inside; give left, top, right, bottom with left < right and top < bottom")
    return box


def _three_levels(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{shown(value)} is no colour; give red, green, blue from 0 to 255")
    return value


def _some(value: list[Any]) -> list[Any]:
    if not value:
        raise ValueError("an empty list asks for nothing; put something in it or leave it out")
    return value


def _none_if_empty(value: list[Any] | None) -> list[Any] | None:
    return value or None


Box = Annotated[tuple[Number, Number, Number, Number], BeforeValidator(_four_numbers), AfterValidator(_right_way_round)]
Level = Annotated[Count, Field(ge=0, le=255)]
Color = Annotated[tuple[Level, Level, Level], BeforeValidator(_three_levels)]
Ratio = Annotated[Number, Field(gt=0, le=4)]  # of a size, added to a side
Kept = Annotated[Count, Field(ge=1, le=4092)]
Boxes = Annotated[list[Box], AfterValidator(_some)]


class _Mode(BaseModel):
    """needs and takes: fields of the row. reference_masks: white where each reference shows what shall appear."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    needs: ClassVar[tuple[str, ...]] = ("control_video",)
    takes: ClassVar[tuple[str, ...]] = ("reference_images",)

    reference_masks: Annotated[list[Media] | None, AfterValidator(_none_if_empty)] = None

    def broken_rules(self, given: Collection[str]) -> list[str]:
        """What is wrong between these options and the row's fields, of which `given` are not empty."""
        return []

    def check_fits(self, *, width: int, height: int, num_frames: int) -> None:
        """Raise RequestError when the options mean nothing in a clip of that shape."""


class ControlMode(_Mode):
    """Follow control_video: everywhere, or where mask_video is white while the rest is kept as it is.

    process makes a control of what the video is: "gray" of colours, "scribble" of light lines on black, "depth_near_*"
    of distances drawn in gray, where what is near is light or dark.
    """

    takes: ClassVar[tuple[str, ...]] = ("mask_video", "reference_images")

    mode: Literal["control"]
    process: Literal["gray", "scribble", "depth_near_light", "depth_near_dark"] | None = None


class InpaintMode(_Mode):
    """Keep control_video but for what mask_video or box marks: that is hidden and generated anew.

    shape makes of the mark its convex hull or the box around it, frame by frame; expand enlarges that on each side, by
    a share of its size.
    """

    takes: ClassVar[tuple[str, ...]] = ("mask_video", "reference_images")

    mode: Literal["inpaint"]
    box: Box | None = None
    shape: Literal["mask", "hull", "box"] = "mask"
    expand: Ratio | None = None

    def broken_rules(self, given: Collection[str]) -> list[str]:
        if (self.box is None) == ("mask_video" not in given):
            return [
                "vace: mode 'inpaint' needs either a mask_video or a box of what to generate anew; give one of them"
            ]
        return []

    def check_fits(self, *, width: int, height: int, num_frames: int) -> None:
        if self.box is None:
            return
        left, top, right, bottom = self.box
        inside = [int(min(max(edge, 0), end)) for edge, end in zip(self.box, (width, height) * 2, strict=True)]
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise RequestError(
                f"vace: box {[left, top, right, bottom]} (left, top, right, bottom) marks no pixel of a clip of "
                f"{width}x{height}; move it inside"
            )


class OutpaintMode(_Mode):
    """A larger picture around control_video, which is made smaller for it, by `ratio` of its size on each side named.

    inner keeps the video's size and generates its border anew.
    """

    mode: Literal["outpaint"]
    directions: Annotated[list[Direction], AfterValidator(_some)] = list(_SIDES)
    ratio: Ratio = 0.25
    inner: bool = False

    def broken_rules(self, given: Collection[str]) -> list[str]:
        sides = max(sum(side in self.directions for side in pair) for pair in _OPPOSITE_SIDES)
        if self.inner and sides * self.ratio >= 1:
            return [
                f"vace: ratio {self.ratio:g} of an inner border on {', '.join(self.directions)} leaves nothing of the "
                f"video; use less than {1 / sides:g}"
            ]
        return []

    def check_fits(self, *, width: int, height: int, num_frames: int) -> None:
        grown = [height if side in ("up", "down") else width for side in self.directions]
        if self.inner and self.ratio * max(grown) < 1:
            least = math.ceil(1000 / max(grown)) / 1000
            raise RequestError(
                f"vace: ratio {self.ratio:g} of an inner border is less than a pixel of a clip of {width}x{height} "
                f"toward {', '.join(self.directions)}, so that nothing is generated; use {least:g} or more"
            )


class ExtendMode(_Mode):
    """A clip that begins with `first` or ends with `last`, each an image or a video, or both; the rest is generated.

    Of a video, the num_first frames before what is generated are kept, or the num_last after it; all, where not given.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    mode: Literal["extend"]
    first: Media | None = None
    last: Media | None = None
    num_first: Kept | None = None
    num_last: Kept | None = None

    def broken_rules(self, given: Collection[str]) -> list[str]:
        if not self.first and not self.last:
            return ["vace: mode 'extend' needs first, last or both, each an image or a video; give one"]
        return [
            f"vace: num_{end} is {number}, but there is no {end}; give one or leave num_{end} empty"
            for end, source, number in self._ends()
            if number is not None and not source
        ]

    def check_fits(self, *, width: int, height: int, num_frames: int) -> None:
        num_first, num_last = ((number or 1) if source else 0 for _, source, number in self._ends())
        if num_first + num_last >= num_frames:
            raise RequestError(
                f"vace: {num_first} first and {num_last} last frames kept leave none of num_frames={num_frames} to "
                "generate; keep fewer or set num_frames higher"
            )

    def _ends(self) -> Iterable[tuple[str, str | bytes | None, int | None]]:
        return (("first", self.first, self.num_first), ("last", self.last, self.num_last))


class BoxesMode(_Mode):
    """Outlines that move over white, as VACE reads a layout.

    Each of paths is a box's places at even times, the first in the first frame, the last in the last; colors has one
    for each path, black where not given.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    mode: Literal["boxes"]
    paths: Annotated[list[Boxes], AfterValidator(_some)]
    colors: Annotated[list[Color] | None, AfterValidator(_none_if_empty)] = None

    def broken_rules(self, given: Collection[str]) -> list[str]:
        if self.colors is not None and len(self.colors) != len(self.paths):
            return [f"vace: {len(self.colors)} colors for {len(self.paths)} paths; give one for each, or none"]
        return []


class ReferencesMode(_Mode):
    """A clip of what reference_images show, by the prompt alone."""

    needs: ClassVar[tuple[str, ...]] = ("reference_images",)

    mode: Literal["references"]


VaceMode = ControlMode | InpaintMode | OutpaintMode | ExtendMode | BoxesMode | ReferencesMode
_MODES: dict[str, type[VaceMode]] = {
    "control": ControlMode,
    "inpaint": InpaintMode,
    "outpaint": OutpaintMode,
    "extend": ExtendMode,
    "boxes": BoxesMode,
    "references": ReferencesMode,
}


def parse_vace(value: object) -> VaceMode | None:
    """The mode in a cell: an object, a struct or pairs as Arrow has them, or JSON text; None where it holds nothing.

    ValueError names what breaks a rule, for pydantic to tell.
    """
    if value is None or isinstance(value, VaceMode):
        return value
    fields = map_of_pairs(plain_throughout(_from_json(value) if isinstance(value, str) else value))
    if fields is None:
        return None
    if not isinstance(fields, dict):
        raise ValueError(f'{shown(value)} is no object; write one such as {{"mode": "outpaint", "ratio": 0.25}}')
    if not fields:
        return None
    name = fields.get("mode")
    if not isinstance(name, str) or name not in _MODES:
        found = f"{shown(name)} is not known" if "mode" in fields else f"missing beside {', '.join(map(str, fields))}"
        raise ValueError(f"mode: {found}; use one of {', '.join(map(repr, _MODES))}")
    kind = _MODES[name]
    known = list(kind.model_fields)
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(known)}"
            raise ValueError(f"{key!r} is no option of mode {name!r}; {meant}")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ValueError("; ".join(map(in_words, error.errors()))) from None


def _from_json(text: str) -> object:
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not JSON: {error}; write an object with a mode") from None


def inferred_mode(given: Collection[str]) -> VaceMode:
    """What a row without the column means."""
    return ControlMode(mode="control") if "control_video" in given else ReferencesMode(mode="references")


def media_of(mode: VaceMode) -> Mapping[str, str | bytes | list[str | bytes]]:
    """The sources that stand in the options themselves, by name."""
    return {name: source for name, source in mode.model_dump(include=set(_OWN_MEDIA)).items() if source}


def options_of(mode: VaceMode) -> dict[str, JsonValue]:
    """The options without the sources, defaults filled in, as parse_vace takes them."""
    return mode.model_dump(mode="json", exclude=set(_OWN_MEDIA), exclude_none=True)
