"""What `wan-ray init-debug` writes: a model that shows what its prompts ask for, or random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from wan_ray import Renderer, RenderRequest, load_config
from wan_ray.demo.adherence import look
from wan_ray.demo.captions import NUM_SCENES, is_held_out, scene_at
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.sample import SCENES, write_sample
from wan_ray.stages.planning import plan_manifest


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize(("task", "num_rows"), [("t2v", 8), ("i2v", 4)])
def test_the_sample_is_valid(tmp_path: Path, task: Literal["t2v", "i2v"], num_rows: int, random: bool) -> None:
    config = load_config(str(write_sample(tmp_path, task=task, random=random)), [])
    plan = plan_manifest(config, limit=None)
    assert (len(plan.names), len(plan.refused)) == (num_rows, 0)
    find_checkpoint(tmp_path / "checkpoint").check()
    assert (tmp_path / "checkpoint" / "CARD.md").exists() != random


def test_training_never_saw_the_scenes_of_the_first_frames() -> None:
    held_out = [scene_at(index, variation=0) for index in range(NUM_SCENES) if is_held_out(index)]
    assert all(replace(scene, variation=0) in held_out for scene in SCENES)


def test_the_demo_model_shows_what_it_is_asked_for_and_random_weights_do_not(tmp_path: Path) -> None:
    write_sample(tmp_path / "trained")
    write_sample(tmp_path / "random", random=True)
    request = RenderRequest(
        prompt="A blue truck moves left on a curved road in the city, rainy evening",
        num_frames=33,
        num_inference_steps=15,
        seed=1,
    )
    seen = look(Renderer.from_checkpoint(tmp_path / "trained" / "checkpoint", device="cpu")(request).frames)
    assert (seen.colour, seen.motion, seen.time) == ("blue", "left", "evening")
    noise = look(Renderer.from_checkpoint(tmp_path / "random" / "checkpoint", device="cpu")(request).frames)
    assert (noise.colour, noise.motion, noise.time) != ("blue", "left", "evening")
