"""Scores of clips against values worked out by hand; the filters are ffmpeg's own."""

import math

import numpy as np
import pytest

from wan_ray.errors import StageError
from wan_ray.media.likeness import likeness


def gray(level, num_frames=3):
    return np.full((num_frames, 64, 96, 3), level, np.uint8)


def scene(seed=0):
    random = np.random.default_rng(seed)
    return np.clip(np.cumsum(random.normal(0, 4, (5, 96, 160, 3)), axis=2) + 128, 0, 255)


def test_equal_clips_have_the_best_scores():
    frames = scene().astype(np.uint8)
    found = likeness(frames, frames)
    assert (found.psnr_db, found.ssim) == (math.inf, 1.0)
    assert found.vmaf > 97


def test_a_gray_that_is_off_by_a_known_amount_has_the_psnr_of_the_formula():
    # Y of TV range is 16 + 219 / 255 of the gray: 100 is 102, 120 is 119. U and V are 128 for both.
    assert likeness(gray(120), gray(100)).psnr_db == pytest.approx(10 * math.log10(255**2 / (17**2 / 3)), abs=0.01)


def test_the_more_noise_the_worse_is_every_score():
    wanted = scene()
    random = np.random.default_rng(1)
    noisy = (wanted + random.normal(0, deviation, wanted.shape) for deviation in (2, 8, 32))
    scores = [likeness(np.clip(one, 0, 255).astype(np.uint8), wanted.astype(np.uint8)) for one in noisy]
    for name in ("psnr_db", "ssim", "vmaf"):
        values = [getattr(score, name) for score in scores]
        assert values == sorted(values, reverse=True), name
        assert len(set(values)) == 3, name


def test_clips_of_other_sizes_are_refused():
    with pytest.raises(StageError, match="cannot be compared; use one size"):
        likeness(gray(1), gray(1, num_frames=4))
