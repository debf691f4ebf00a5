"""What VACE is given in each of its modes: frames, a mask of where to generate, and reference images.

F frames, H, W: frames are uint8 [F,H,W,3], masks float32 [F,H,W] or [H,W] for every frame, 1 = generate, 0 = keep.
ali-vilab/VACE vace/annotators (48eb44f) is where the rules come from. controls.py draws control videos, masks.py masks.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from wan_ray.errors import RequestError

Direction = Literal["left", "right", "up", "down"]
_TO_GENERATE = 128  # what VACE was trained to see under a mask: PIL's gray, and MASK_COLOR
_MISSING_FRAME = 127  # and in frames that are to come: 127.5, cut to a byte
_SIDE_MULTIPLE = 16


@dataclass(frozen=True, kw_only=True)
class VaceInputs:
    """frames are None where there are only references: the model then gets exact mid-gray, which no byte is.

    references are uint8 [h,w,3] of any size; the model's side puts each on a white canvas.
    """

    frames: np.ndarray | None
    mask: np.ndarray
    references: tuple[np.ndarray, ...] = ()


def with_references(inputs: VaceInputs, references: Sequence[np.ndarray]) -> VaceInputs:
    """The same mode with these images for what shall appear."""
    return replace(inputs, references=tuple(references))


def references_only(references: Sequence[np.ndarray], *, num_frames: int, width: int, height: int) -> VaceInputs:
    """A clip made of references and prompt alone."""
    mask = np.ones((num_frames, height, width), np.float32)
    return VaceInputs(frames=None, mask=mask, references=tuple(references))


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A reference of the masked thing alone: the image, uint8 [H,W,3], cropped to it, on white; mask [H,W] 1 = it."""
    inside = _one_mask(mask, image.shape[:2]) > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if rows.size == 0:
        raise RequestError("the mask of the reference marks nothing; make white what shall be cut out")
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.where(inside[window][..., None], image[window], np.uint8(255))


def control(frames: np.ndarray) -> VaceInputs:
    """Video to video with a ready control video (depth, pose, flow, scribble, layout, gray): all is generated."""
    return VaceInputs(frames=frames, mask=np.ones(frames.shape[:3], np.float32))


def inpaint(frames: np.ndarray, mask: np.ndarray) -> VaceInputs:
    """Masked editing: what the mask marks is gray and generated anew, the rest is kept."""
    marked = _clip_mask(mask, frames)
    return VaceInputs(frames=np.where(marked[..., None] > 0, np.uint8(_TO_GENERATE), frames), mask=marked)


def outpaint(frames: np.ndarray, *, directions: Collection[Direction], ratio: float) -> VaceInputs:
    """A larger picture around the frames: each side named grows by `ratio` of the frames' own size.

    And then by what makes the size a multiple of 16, on those sides alone; RequestError where none may grow.
    """
    num_frames, height, width, _ = frames.shape
    left, right = _growth(width, "left", "right", directions=directions, ratio=ratio)
    up, down = _growth(height, "up", "down", directions=directions, ratio=ratio)
    canvas = np.full((num_frames, height + up + down, width + left + right, 3), _TO_GENERATE, np.uint8)
    mask = np.ones(canvas.shape[:3], np.float32)
    canvas[:, up : up + height, left : left + width] = frames
    mask[:, up : up + height, left : left + width] = 0
    return VaceInputs(frames=canvas, mask=mask)


def outpaint_source_size(
    width: int, height: int, *, directions: Collection[Direction], ratio: float
) -> tuple[int, int]:
    """Width and height of the frames that outpaint makes width x height, both multiples of 16, of."""
    _check_growth(directions, ratio)
    across = sum(side in directions for side in ("left", "right"))
    down = sum(side in directions for side in ("up", "down"))
    return int(width / (1 + across * ratio)), int(height / (1 + down * ratio))


def outpaint_inner(frames: np.ndarray, *, directions: Collection[Direction], ratio: float) -> VaceInputs:
    """The same size with a new border: each side named is generated anew up to `ratio` of the size."""
    _check_growth(directions, ratio)
    height, width = frames.shape[1:3]
    x, y = int(ratio * width), int(ratio * height)
    left, right = x * ("left" in directions), width - x * ("right" in directions)
    top, bottom = y * ("up" in directions), height - y * ("down" in directions)
    mask = np.ones((height, width), np.float32)
    mask[top:bottom, left:right] = 0
    if not (mask == 0).any():
        raise RequestError(f"ratio={ratio:g} on {sorted(directions)} leaves nothing of the picture; make it smaller")
    return inpaint(frames, mask)


def extend(*, num_frames: int, first: np.ndarray | None = None, last: np.ndarray | None = None) -> VaceInputs:
    """A clip of num_frames that begins with `first` or ends with `last` or both, frames or clips, uint8 [n,H,W,3].

    What lies between is generated.
    """
    first, last = (given if given is not None and len(given) else None for given in (first, last))
    shown = first if first is not None else last
    if shown is None:
        raise RequestError("there is nothing to extend; give first frames, last frames or both")
    begin, end = 0 if first is None else len(first), num_frames - (0 if last is None else len(last))
    if first is not None and last is not None and first.shape[1:] != last.shape[1:]:
        raise RequestError(f"first is {_size(first)}, last {_size(last)}; bring them to one size")
    if begin >= end:
        raise RequestError(
            f"{begin} first and {num_frames - end} last frames leave none of num_frames={num_frames} to generate; "
            "give fewer or set num_frames higher"
        )
    frames = np.full((num_frames, *shown.shape[1:]), _MISSING_FRAME, np.uint8)
    mask = np.ones(frames.shape[:3], np.float32)
    if first is not None:
        frames[:begin] = first
    if last is not None:
        frames[end:] = last
    mask[:begin] = mask[end:] = 0
    return VaceInputs(frames=frames, mask=mask)


def _growth(
    size: int, before: Direction, after: Direction, *, directions: Collection[Direction], ratio: float
) -> tuple[int, int]:
    """By how many pixels an axis grows at either end."""
    _check_growth(directions, ratio)
    grown = [int(ratio * size) if side in directions else 0 for side in (before, after)]
    excess = -(size + sum(grown)) % _SIDE_MULTIPLE
    if excess and not (before in directions or after in directions):
        raise RequestError(
            f"{size} pixels are no multiple of {_SIDE_MULTIPLE}, and the picture grows neither {before} nor {after}; "
            "add one of them or resize the source"
        )
    if before in directions and after in directions:
        return grown[0] + excess // 2, grown[1] + excess - excess // 2
    return (grown[0] + excess, 0) if before in directions else (0, grown[1] + excess)


def _check_growth(directions: Collection[Direction], ratio: float) -> None:
    if not directions or not set(directions) <= {"left", "right", "up", "down"}:
        raise RequestError(f"directions={sorted(directions)}: name some of left, right, up and down")
    if not 0 < ratio <= 4:
        raise RequestError(f"ratio={ratio:g} is not above 0 and at most 4; it is the share of the size added to a side")


def _clip_mask(mask: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The mask of 0 and 1 for each frame, [F,H,W]."""
    num_frames, height, width, _ = frames.shape
    if mask.shape not in ((height, width), (num_frames, height, width)):
        raise RequestError(
            f"the mask is {list(mask.shape)}, the frames {list(frames.shape[:3])}; give one mask, or one per frame"
        )
    return np.broadcast_to(mask >= 0.5, frames.shape[:3]).astype(np.float32)


def _one_mask(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if mask.shape != size:
        raise RequestError(f"the mask is {list(mask.shape)}, the image {list(size)}; give them one size")
    return (mask >= 0.5).astype(np.float32)


def _size(frames: np.ndarray) -> str:
    return f"{frames.shape[2]}x{frames.shape[1]}"
