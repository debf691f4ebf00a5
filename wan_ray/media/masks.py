"""Masks of other shapes: a box, what a mask marks enlarged, its convex hull, its bounding box.

Masks are float32 [H,W] or [F,H,W], 1 = generate, 0 = keep; each frame is treated by itself, and an empty one stays so.
ali-vilab/VACE vace/annotators/maskaug.py (48eb44f), without its random choices.
"""

from collections.abc import Callable

import numpy as np

from wan_ray.errors import RequestError

_ROUNDING = 1e-9


def box_mask(box: tuple[float, float, float, float], *, width: int, height: int) -> np.ndarray:
    """A mask [H,W] of the box from left, top up to right, bottom in pixels; RequestError when none of it is inside."""
    left, top, right, bottom = (int(min(max(edge, 0), end)) for edge, end in zip(box, (width, height) * 2, strict=True))
    if left >= right or top >= bottom:
        raise RequestError(f"box {list(box)} (left, top, right, bottom) marks nothing of {width}x{height} pixels")
    mask = np.zeros((height, width), np.float32)
    mask[top:bottom, left:right] = 1
    return mask


def expand_mask(mask: np.ndarray, *, ratio: float) -> np.ndarray:
    """The mask, larger on each side by `ratio` of what it marks, but at most half the way to the picture's edge."""
    if not 0 < ratio <= 4:
        raise RequestError(f"ratio={ratio:g} is not above 0 and at most 4; it is the share of the size added to a side")
    return _each_frame(mask, lambda marked: _expanded(marked, ratio))


def hull_mask(mask: np.ndarray) -> np.ndarray:
    """The convex hull of all that the mask marks."""
    return _each_frame(mask, _hull)


def bounding_box_mask(mask: np.ndarray) -> np.ndarray:
    """The smallest upright box around all that the mask marks."""
    return _each_frame(mask, _box)


def _each_frame(mask: np.ndarray, shape: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    frames = mask.reshape(-1, *mask.shape[-2:]) >= 0.5
    shaped = [shape(frame) if frame.any() else frame for frame in frames]
    return np.stack(shaped).reshape(mask.shape).astype(np.float32)


def _edges(marked: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column, first and last row that hold something."""
    columns, rows = np.flatnonzero(marked.any(0)), np.flatnonzero(marked.any(1))
    return int(columns[0]), int(columns[-1]), int(rows[0]), int(rows[-1])


def _box(marked: np.ndarray) -> np.ndarray:
    left, right, top, bottom = _edges(marked)
    box = np.zeros_like(marked)
    box[top : bottom + 1, left : right + 1] = True
    return box


def _expanded(marked: np.ndarray, ratio: float) -> np.ndarray:
    height, width = marked.shape
    left, right, top, bottom = _edges(marked)
    x, y = ratio * (right - left + 1), ratio * (bottom - top + 1)
    wide = _smeared(marked, int(min(x, left / 2)), int(min(x, (width - right) / 2)))
    return _smeared(wide.T, int(min(y, top / 2)), int(min(y, (height - bottom) / 2))).T


def _smeared(marked: np.ndarray, before: int, after: int) -> np.ndarray:
    """Along the last axis, each pixel together with so many before and after it."""
    size = marked.shape[1]
    counts = np.pad(np.cumsum(marked, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    at = np.arange(size)
    return counts[:, np.minimum(at + before + 1, size)] > counts[:, np.maximum(at - after, 0)]


def _hull(marked: np.ndarray) -> np.ndarray:
    """All pixels whose middle lies within the convex hull of the marked pixels' middles."""
    rows = np.flatnonzero(marked.any(1))
    first, last = marked[rows].argmax(1), marked.shape[1] - 1 - marked[rows, ::-1].argmax(1)
    left, right = _envelope(rows, first), -_envelope(rows, -last)
    columns = np.arange(marked.shape[1])
    hull = np.zeros_like(marked)
    hull[rows[0] : rows[-1] + 1] = (columns >= left[:, None] - _ROUNDING) & (columns <= right[:, None] + _ROUNDING)
    return hull


def _envelope(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The greatest convex curve that lies under the values at these rows, at every row from the first to the last."""
    corners: list[tuple[int, int]] = []
    for y, x in zip(rows.tolist(), values.tolist(), strict=True):
        while len(corners) > 1 and _turn(corners[-2], corners[-1], (y, x)) <= 0:
            corners.pop()
        corners.append((y, x))
    known, bounds = np.array(corners, np.float64).T
    return np.interp(np.arange(rows[0], rows[-1] + 1, dtype=np.float64), known, bounds)


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    """Positive where the way over three (row, value) points bends to greater values."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
