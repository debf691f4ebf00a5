"""Control videos that need no network, drawn the way VACE was trained to read them: uint8 [F,H,W,3] for control().

F frames, H, W. ali-vilab/VACE vace/annotators/{gray,scribble,depth,layout}.py (48eb44f).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from wan_ray.errors import RequestError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
_LINE_WIDTH = 2


def gray_control(frames: np.ndarray) -> np.ndarray:
    """The frames without color.

    With the weights of red and blue exchanged, as the released annotator does it: VACE knows no other gray.
    """
    gray = frames @ np.array([0.114, 0.587, 0.299], np.float32)
    return _as_rgb(np.floor(gray + 0.5).astype(np.uint8))


def scribble_control(lines: np.ndarray) -> np.ndarray:
    """Black lines on white, the way VACE was trained. lines [F,H,W]: bool, or uint8 as Canny gives it.

    White lines on black would be read as a picture.
    """
    strength = lines.astype(np.uint8) * np.uint8(255) if lines.dtype == np.bool_ else lines
    return _as_rgb(255 - strength)


def depth_control_from_metres(depth: np.ndarray) -> np.ndarray:
    """Distances [F,H,W] in any one unit as VACE's depth, for control(): the nearest is 255, infinity is farthest.

    RequestError for distances that are zero, negative or NaN, as in sparse maps: they are holes, not distances.
    """
    if not (depth > 0).all():
        share = float(np.mean(~(depth > 0)))
        raise RequestError(
            f"{share:.1%} of the depth values are 0, negative or NaN; fill the holes, and write inf where there is sky"
        )
    return depth_control_from_disparity(1 / depth.astype(np.float32))


def depth_control_from_disparity(disparity: np.ndarray) -> np.ndarray:
    """Disparities, inverse depths or MiDaS outputs [F,H,W], where near is large, as VACE's depth.

    Each frame by its own least and greatest value, 0 and 255, as VACE was trained; a flat frame is all 0.
    """
    if not np.isfinite(disparity).all():
        raise RequestError("some disparities are NaN or infinite; fill the holes, 0 is infinitely far")
    near = disparity.astype(np.float32)
    near -= near.min(axis=(1, 2), keepdims=True)
    greatest = near.max(axis=(1, 2), keepdims=True)
    return _as_rgb((near / np.where(greatest > 0, greatest, 1) * 255).astype(np.uint8))


def box_layout(
    paths: Sequence[Sequence[Box]],
    *,
    num_frames: int,
    width: int,
    height: int,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> np.ndarray:
    """Outlines of moving boxes on white, black or of these colors; frames uint8 [F,H,W,3].

    Each path is a box's places at even times, the first in the first frame and the last in the last: one place, start
    and end, or one per frame. Upstream's never reaches the end.
    """
    places = [_moved(path, num_frames) for path in paths]
    inks = colors if colors is not None else [(0, 0, 0)] * len(paths)
    frames = []
    for i in range(num_frames):
        canvas = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(canvas)
        for place, ink in zip(places, inks, strict=True):
            draw.rectangle(tuple(place[i].tolist()), outline=ink, width=_LINE_WIDTH)
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def _moved(path: Sequence[Box], num_frames: int) -> np.ndarray:
    """Whole pixels int [F,4] of a box on its way."""
    corners = np.array(path, np.float64).reshape(-1, 4)
    if len(corners) == 0 or not np.isfinite(corners).all() or (corners[:, :2] > corners[:, 2:]).any():
        raise RequestError(f"{list(path)} is no path of boxes; each is left, top, right, bottom with left <= right")
    times = np.linspace(0, len(corners) - 1, num_frames)
    moved = [np.interp(times, np.arange(len(corners)), corners[:, i]) for i in range(4)]
    return np.rint(np.stack(moved, axis=1)).astype(int)


def _as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)
