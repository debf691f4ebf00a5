"""The weights that are in the package: what a change to the engine does to clips that show something."""

import json
from importlib.resources import as_file, files
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

from wan_ray.demo.judging import adherence
from wan_ray.media.likeness import likeness

NUM_PROMPTS = 3


@pytest.fixture(scope="module")
def weights():
    with as_file(files("wan_ray") / "demo" / "weights") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def judged(weights):
    """judged(**settings): how the first held-out prompts come out, in 15 steps unless told; rendered once."""
    kept = {}

    def judge(num_prompts=NUM_PROMPTS, **settings):
        key = json.dumps([num_prompts, settings], sort_keys=True)
        if key not in kept:
            settings = {"num_inference_steps": 15, **settings}
            kept[key] = adherence(weights, num_prompts=num_prompts, settings=settings)
        return kept[key]

    return judge


def overall(found):
    return mean(found.own.values())


@pytest.mark.timeout(290)
def test_clips_show_what_they_were_asked_for_and_not_what_others_were(judged):
    found = judged()
    assert overall(found) >= 0.8
    assert overall(found) > mean(found.chance.values()) + 0.2


@pytest.mark.timeout(290)
def test_guidance_that_few_steps_cannot_bear_shows_in_what_is_seen(judged):
    # The scenes are simple enough to be followed without guidance; a strong one, in few steps, bleaches their colours.
    without, strong = (judged(12, num_inference_steps=4, guidance_scale=scale) for scale in (1.0, 6.0))
    assert overall(without) == 1
    assert strong.own["colour"] < 1


@pytest.mark.timeout(290)
@pytest.mark.parametrize(("quality", "psnr_db", "ssim"), [("high", 30, 0.95), ("draft", 24, 0.85)])
def test_a_quality_leaves_work_out_and_still_shows_what_was_asked_for(judged, quality, psnr_db, ssim):
    exact, found = judged(num_inference_steps=30), judged(num_inference_steps=30, quality=quality)
    assert overall(found) >= overall(exact) - 0.15
    pairs = zip(found.entries, exact.entries, strict=True)
    scores = [likeness(np.stack(one.frames), np.stack(other.frames)) for one, other in pairs]
    assert mean(score.psnr_db for score in scores) > psnr_db
    assert mean(score.ssim for score in scores) > ssim
    assert any(score.ssim < 1 for score in scores)  # something was left out


def test_the_card_says_what_was_measured(weights):
    card = (weights / "CARD.md").read_text(encoding="utf-8")
    for wanted in ("held out", "dB", "by chance", "Limits"):
        assert wanted in card
    assert sum(file.stat().st_size for file in weights.rglob("*") if file.is_file()) < 20e6
