"""How a picture of one size becomes one of another: where its pixels go is a Fit, which the record keeps for labels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The source, resized_width x resized_height large, then the width x height window at (crop_left, crop_top) of it.

    That window lies at (left, top) of the clip. With pixel edges at whole numbers, a point (x, y) of the source lies at
    (x * resized_width / source_width - crop_left + left, y * resized_height / source_height - crop_top + top) of the
    clip; fx, cx and fy, cy of a camera go the same way. source_width and source_height are of the upright picture.
    """

    source_width: int
    source_height: int
    resized_width: int
    resized_height: int
    crop_left: int
    crop_top: int
    width: int
    height: int
    left: int = 0
    top: int = 0


def cover_fit(source_width: int, source_height: int, *, width: int, height: int, pixel_aspect: float = 1.0) -> Fit:
    """The smallest resize that covers width x height, and its middle; pixel_aspect is a source pixel's width / height.

    Wan2.1 wan/utils/vace_processor.py:156 (9737cba).
    """
    scale = max(width / (source_width * pixel_aspect), height / source_height)
    resized_width = max(width, round(source_width * pixel_aspect * scale))
    resized_height = max(height, round(source_height * scale))
    return Fit(
        source_width=source_width,
        source_height=source_height,
        resized_width=resized_width,
        resized_height=resized_height,
        crop_left=(resized_width - width) // 2,
        crop_top=(resized_height - height) // 2,
        width=width,
        height=height,
    )


def fit_frame(frame: np.ndarray, fit: Fit) -> np.ndarray:
    """The frame, uint8 [H,W,3], as the fit says: bicubic, and smoothed where it shrinks."""
    return _resized(Image.fromarray(frame), fit, Image.Resampling.BICUBIC)


def fit_mask(mask: np.ndarray, fit: Fit) -> np.ndarray:
    """The mask, uint8 [H,W], as the fit says, by nearest pixel: no value that it did not have."""
    return _resized(Image.fromarray(mask), fit, Image.Resampling.NEAREST)


def _resized(image: Image.Image, fit: Fit, resample: Image.Resampling) -> np.ndarray:
    # Only the window is computed: the whole of a very wide picture, resized to cover a tall one, may fill the memory.
    step_x, step_y = fit.source_width / fit.resized_width, fit.source_height / fit.resized_height
    left, top = fit.crop_left * step_x, fit.crop_top * step_y
    right = min((fit.crop_left + fit.width) * step_x, fit.source_width)
    bottom = min((fit.crop_top + fit.height) * step_y, fit.source_height)
    return np.array(image.resize((fit.width, fit.height), resample, box=(left, top, right, bottom)))
