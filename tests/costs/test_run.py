"""A whole run's figures, added up by hand from those of one clip."""

from typing import Any

import pytest

from wan_ray.config import RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.run import clip_bytes, estimate_run

LARGE = Bucket("t2v-14B", "t2v", 1280, 720, 81, 50)
FEW_STEPS = Bucket("t2v-1.3B", "t2v", 832, 480, 81, 4, num_unguided_steps=4)


def config_of(**changes: Any) -> RenderConfig:
    """Seven GPUs of eight denoise one clip each."""
    return RenderConfig.model_validate(
        {
            "models": [{"variant": variant, "checkpoint": "none"} for variant in ("t2v-14B", "t2v-1.3B", "debug")],
            "stages": {
                "encode": {"num_gpus": 0.4},
                "denoise": {"num_gpus": 1, "replicas": 7},
                "decode": {"num_gpus": 0.6, "replicas": 1},
            },
            "hardware": {"gpu": "H100-80GB", "num_gpus": 8, "price_per_gpu_hour": 2.5},
            **changes,
        }
    )


def test_a_run_takes_its_waves_and_costs_all_its_gpus() -> None:
    run = estimate_run(config_of(), {LARGE: 20})
    assert run is not None
    (model,) = run.models
    (shape,) = model.shapes
    assert run.wall_s == pytest.approx(3 * shape.chosen.seconds)  # 7 + 7 + 6
    assert run.gpu_hours == pytest.approx(8 * run.wall_s / 3600)
    assert run.price == pytest.approx(2.5 * run.gpu_hours)
    assert shape.clips_per_hour == pytest.approx(7 * 3600 / shape.chosen.seconds)
    assert shape.gpu_hours == pytest.approx(20 * shape.gpu_seconds / 3600)
    assert 0 < shape.gpu_seconds - shape.chosen.gpu_seconds < 15  # its decoding, 9.5 s, and its prompt
    assert (model.slowest, model.encode_workers, model.decode_workers) == ("denoise", 1, 1)
    assert model.together == ("encode", "denoise", "decode")
    assert model.tail is None or model.tail.layout.num_gpus > 1


def test_models_take_turns_and_only_known_ones_are_counted() -> None:
    alone = [estimate_run(config_of(), {bucket: 100}) for bucket in (LARGE, FEW_STEPS)]
    both = estimate_run(config_of(), {LARGE: 100, FEW_STEPS: 100, Bucket("debug", "t2v", 64, 32, 5, 8): 3})
    assert both is not None
    assert [model.variant for model in both.models] == ["t2v-14B", "t2v-1.3B"]
    assert both.wall_s == pytest.approx(sum(run.wall_s for run in alone if run))
    assert estimate_run(config_of(), {Bucket("debug", "t2v", 64, 32, 5, 8): 3}) is None
    assert estimate_run(config_of(hardware=None), {LARGE: 1}) is None


def test_with_few_steps_decoding_is_what_a_run_waits_for() -> None:
    run = estimate_run(config_of(), {FEW_STEPS: 1000})
    assert run is not None
    (model,) = run.models
    assert model.slowest == "decode"
    assert run.wall_s == pytest.approx(4.1 * 1000, rel=0.03)
    # 84 s for 100 passes are 3.4 s for 4: about one decoder to each of the seven.
    assert model.decode_workers == pytest.approx(7 * 4.1 / 3.4, abs=1)


def test_clips_are_as_large_as_x264_made_them() -> None:
    # Medium, crf 18: 0.83 and 1.91 MB of 81 frames, as encoded for the performance map.
    assert clip_bytes(LARGE._replace(width=832, height=480), crf=18) == pytest.approx(0.83e6, rel=0.1)
    assert clip_bytes(LARGE, crf=18) == pytest.approx(1.91e6, rel=0.1)
    assert clip_bytes(LARGE, crf=12) == pytest.approx(2 * clip_bytes(LARGE, crf=18))
