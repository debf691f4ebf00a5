"""Between two steps: what is saved when, and what a clip's progress depends on."""

from dataclasses import replace

import pytest
import torch

from wan_ray.errors import ClipStoppedError, ProgressError
from wan_ray.stages import pause as pause_module
from wan_ray.stages.items import Item
from wan_ray.stages.pause import Pause, recipe_of


@pytest.fixture
def clip(make_item) -> Item:
    tensors = {"context": torch.ones(3, 8, dtype=torch.bfloat16), "condition": torch.zeros(2, 4)}
    return replace(make_item(seed=3), weights={"text_encoder": "t"}, tensors=tensors)


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": "another"},
        {"negative_prompt": "another"},
        {"seed": 4},
        {"guidance_scale": 3.5},
        {"flow_shift": 3.5},
        {"num_inference_steps": 3},
        {"solver": "dpm++"},
        {"width": 80},
        {"height": 48},
        {"num_frames": 9},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_request_of_another_value_is_another_clip(clip, make_item, field):
    request = make_item(**{"seed": 3, **field}).sound
    assert recipe_of(replace(clip, request=request), "f") != recipe_of(clip, "f")


def test_other_weights_adapters_or_conditions_make_another_clip(clip):
    recipes = [
        recipe_of(clip, "f"),
        recipe_of(clip, "g"),
        recipe_of(replace(clip, weights={"text_encoder": "u"}), "f"),
        # The same path, and another picture behind it.
        recipe_of(replace(clip, tensors={**clip.tensors, "condition": torch.ones(2, 4)}), "f"),
        recipe_of(replace(clip, tensors={**clip.tensors, "context": torch.ones(3, 8)}), "f"),
        recipe_of(replace(clip, tensors={"context": clip.tensors["context"]}), "f"),
    ]
    assert len({str(sorted(recipe.items())) for recipe in recipes}) == len(recipes)


def test_the_same_clip_has_one_recipe_wherever_it_is_and_however_often_it_was_tried(clip):
    again = replace(Item.from_row(clip.to_row()), attempt=2, seconds={"encode": 1.0})
    assert recipe_of(again, "f") == recipe_of(clip, "f")


def test_a_clip_that_is_never_due_saves_nothing_and_one_always_due_each_step(encode, denoise, make_item):
    item = encode(make_item(num_inference_steps=4))
    never: list[bytes] = []
    denoise(item, pause=Pause(save=never.append, save_every_s=1e9))
    assert never == []
    always: list[bytes] = []
    wanted = denoise(item, pause=Pause(save=always.append, save_every_s=0))
    assert len(always) == 3  # before steps 2, 3 and 4
    for step, data in enumerate(always, start=1):
        heard: list[int] = []
        again = denoise(item, lambda done, _, heard=heard: heard.append(done), resume=data)
        assert torch.equal(again.tensors["latents"], wanted.tensors["latents"])
        assert heard == list(range(step + 1, 5))


def test_time_between_saves_is_counted_from_the_last_one(encode, denoise, make_item, monkeypatch):
    clock = iter(range(0, 1000, 10))  # ten seconds a look
    monkeypatch.setattr(pause_module.time, "monotonic", lambda: next(clock))
    saved: list[bytes] = []
    denoise(encode(make_item(num_inference_steps=12)), pause=Pause(save=saved.append, save_every_s=35))
    assert 1 < len(saved) < 4


def test_a_stop_before_the_first_step_saves_nothing_and_one_that_is_repeated_does_not_save_twice(
    encode, denoise, make_item
):
    item = encode(make_item(num_inference_steps=3))
    saved: list[bytes] = []
    with pytest.raises(ClipStoppedError, match="stopped after 0 of 3 steps: notice"):
        denoise(item, pause=Pause(save=saved.append, should_stop=lambda: "notice"))
    assert saved == []
    steps: list[int] = []
    stop = Pause(save=saved.append, should_stop=lambda: "notice" if steps else None)
    with pytest.raises(ClipStoppedError, match="stopped after 1 of 3 steps: notice"):
        denoise(item, lambda done, _: steps.append(done), pause=stop)
    assert len(saved) == 1
    with pytest.raises(ClipStoppedError, match="stopped after 1 of 3 steps: notice"):
        denoise(item, resume=saved[0], pause=stop)
    assert len(saved) == 1


def test_what_another_clip_saved_is_not_gone_on_from(encode, denoise, make_item):
    saved: list[bytes] = []
    denoise(encode(make_item(seed=1, num_inference_steps=3)), pause=Pause(save=saved.append, save_every_s=0))
    other = encode(make_item(seed=2, num_inference_steps=3))
    with pytest.raises(ProgressError, match="seed '1' instead of '2'"):
        denoise(other, resume=saved[0])
