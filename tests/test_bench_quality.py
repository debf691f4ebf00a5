"""The table of shortcuts, by the command, on small random weights."""

import json
import math

import pytest

from wan_ray.bench_quality import PROMPTS
from wan_ray.cli import main


@pytest.mark.timeout(280)
def test_the_command_makes_the_table_and_its_figures(tmp_path, capsys):
    file = tmp_path / "new" / "quality.json"
    flags = "--quality --clips 1 --steps 8 --size 64x48 --frames 5 --device cpu --dtype float32"
    assert main(["bench", *flags.split(), "--json", str(file)]) == 0
    told = json.loads(file.read_text(encoding="utf-8"))
    settings = told["settings"]
    wanted = {"step_cache 0.12", "guidance_stop 0.6", "quality high", "quality draft", "4 steps", "int8", "float8"}
    assert wanted <= set(settings)
    assert len(settings) >= 5
    half, stopped = settings["4 steps"], settings["guidance_stop 0.4"]
    assert half["steps_computed"] == 4
    assert half["denoise_s"] > 0
    assert half["likeness"]["ssim"] < 1
    assert stopped["likeness"]["ssim"] < 1
    quantized = [settings[name]["likeness"]["psnr_db"] for name in ("int8", "float8")]
    assert quantized[0] > quantized[1] > 20
    assert settings["int8"]["setting"] == {"quantization": "int8"}
    for found in settings.values():
        like = found["likeness"]
        assert found["steps_computed"] <= 8
        assert (like["psnr_db"] is None) == (like["ssim"] == 1.0)
        assert 0 <= like["vmaf"] <= 100
        # How large it is, clips of milliseconds cannot tell.
        assert math.isfinite(found["speedup"])
        assert found["speedup"] > 0
    # Random weights change too much from step to step for a small threshold: the exact clip again.
    assert settings["step_cache 0.03"]["likeness"]["psnr_db"] is None
    out = capsys.readouterr().out
    assert "quality draft" in out
    assert "VMAF" in out
    assert "of random weights" in out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--clips", "0"], f"--clips 0: there are {len(PROMPTS)} prompts"),
        (["--clips", "9"], f"--clips 9: there are {len(PROMPTS)} prompts"),
        (["--size", "64"], "--size '64' is not a width and a height"),
        (["--steps", "0"], "num_inference_steps: 0"),
        (["--frames", "6"], "num_frames: 6"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
    ],
)
def test_flags_that_cannot_be_measured_are_told(capsys, flags, told):
    assert main(["bench", "--quality", *flags]) in (1, 2)
    assert told in capsys.readouterr().err
