"""What `wan-ray init-debug` writes: a model that shows what its eight prompts ask for, or random weights."""

from pathlib import Path

import pytest

from wan_ray import Renderer, RenderRequest, load_config
from wan_ray.demo.adherence import look
from wan_ray.sample import write_sample
from wan_ray.stages.planning import plan_manifest


@pytest.mark.parametrize("random", [False, True])
def test_the_sample_is_valid(tmp_path: Path, random: bool) -> None:
    config = load_config(str(write_sample(tmp_path, random=random)), [])
    plan = plan_manifest(config, limit=None)
    assert (len(plan.names), len(plan.refused)) == (8, 0)
    assert (tmp_path / "checkpoint" / "CARD.md").exists() != random


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
