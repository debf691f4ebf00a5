"""The I2V model that is in the package: it goes on from a first frame as the prompt says."""

from importlib.resources import as_file, files
from statistics import mean

import pytest

from wan_ray.demo.checkpoint import unpack
from wan_ray.demo.judging import adherence


@pytest.mark.timeout(290)
def test_clips_go_on_from_their_first_frames_as_they_were_asked_to(tmp_path):
    with as_file(files("wan_ray") / "demo" / "weights") as weights:
        unpack(weights, tmp_path, i2v=True)
    found = adherence(tmp_path, num_prompts=3, settings={"num_inference_steps": 15})
    assert mean(found.own.values()) >= 0.8
    assert mean(found.own.values()) > mean(found.chance.values()) + 0.2
    assert found.psnr > found.still_psnr + 1  # nearer to how the drawn clips go on than a clip that stands still
