"""Drawn scenes show what their labels say, and the judge of clips sees it there."""

from dataclasses import replace

import numpy as np
import pytest

from wan_ray.demo.adherence import look
from wan_ray.demo.captions import NUM_SCENES, caption, is_held_out, scene_at, scenes, words
from wan_ray.demo.judging import shares
from wan_ray.demo.palette import COLOURS, MOTIONS, PLACES, ROADS, TIMES, VEHICLES, WEATHERS
from wan_ray.demo.scenes import HEIGHT, NUM_FRAMES, WIDTH, Scene, draw

SCENE = Scene(colour="red", vehicle="car", motion="left", time="day", weather="clear", road="straight", place="fields")


def test_a_clip_has_its_size_and_is_the_same_every_time() -> None:
    clip = draw(SCENE)
    assert clip.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert clip.dtype == np.uint8
    assert (clip == draw(SCENE)).all()
    assert (clip[:5] == draw(SCENE, num_frames=5)).all()


def test_only_the_vehicle_differs_from_the_empty_road() -> None:
    differs = (draw(SCENE) != draw(SCENE, with_vehicle=False)).any(-1)
    assert differs.any((1, 2)).all()
    assert differs.mean() < 0.2
    columns = [np.flatnonzero(frame.any(0)).mean() for frame in differs]
    assert (np.diff(columns) < 0).all()  # to the left, all the time


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("colour", COLOURS),
        ("vehicle", VEHICLES),
        ("motion", MOTIONS),
        ("time", TIMES),
        ("weather", WEATHERS),
        ("road", ROADS),
        ("place", PLACES),
    ],
)
def test_every_label_changes_picture_and_caption(field: str, values: tuple[str, ...]) -> None:
    variants = [replace(SCENE, **{field: value}) for value in values]
    assert len({draw(scene).tobytes() for scene in variants}) == len(values)
    for template in range(3):
        assert len({caption(scene, template) for scene in variants}) == len(values)


def test_night_is_darker_than_evening_and_evening_than_day() -> None:
    night, evening, day = (draw(replace(SCENE, time=time), num_frames=1).mean() for time in ("night", "evening", "day"))
    assert night < 0.6 * evening < 0.6 * day


def test_what_is_drawn_is_judged_right_and_shuffled_captions_at_chance() -> None:
    drawn = scenes(28, held_out=True, seed=4)
    seen = [look(draw(scene)) for scene in drawn]
    assert shares(seen, drawn) == {"colour": 1.0, "motion": 1.0, "time": 1.0}
    # Against every other scene's caption at once, so that luck in one order plays no part.
    by_chance = [shares(seen, drawn[shift:] + drawn[:shift]) for shift in range(1, 28)]
    means = {name: np.mean([share[name] for share in by_chance]) for name in by_chance[0]}
    assert means == pytest.approx({"colour": 0.25, "motion": 0.25, "time": 0.33}, abs=0.09)


def test_no_vehicle_is_seen_in_noise_or_on_an_empty_road() -> None:
    empty = look(draw(replace(SCENE, weather="rain"), with_vehicle=False))
    assert (empty.colour, empty.motion) == (None, None)
    noise = look(np.random.RandomState(0).randint(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8))
    assert noise.motion is None


def test_one_scene_in_ten_is_held_out_and_drawn_from_its_own_side_only() -> None:
    held_out = [index for index in range(NUM_SCENES) if is_held_out(index)]
    assert 0.08 < len(held_out) / NUM_SCENES < 0.12
    captions = {caption(scene_at(index, 0)) for index in held_out}
    assert all(caption(scene) in captions for scene in scenes(50, held_out=True, seed=1))
    assert not any(caption(scene) in captions for scene in scenes(50, held_out=False, seed=1))


def test_every_word_of_a_caption_is_one_token(tmp_path) -> None:
    from wan_ray.demo.tokens import write_tokenizer
    from wan_ray.model.text_encoder import load_tokenizer

    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    english = tokenizer.encode("A yellow truck drives away on a curved road in the city, rainy evening").tokens
    assert [token.strip("▁") for token in english[:3]] == ["A", "yellow", "truck"]
    assert len(english) == 14 + 1 + 1  # words, comma, end
    known = {token.strip("▁") for token in words()}
    chinese = [token.strip("▁") for token in tokenizer.encode(caption(SCENE, 2)).tokens]
    assert {"红色", "轿车", "向左行驶", "白天"} <= known & set(chinese)
