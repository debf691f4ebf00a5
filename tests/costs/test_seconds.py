"""Times against what others measured and published: Wan2.1's assets/comp_effic.png, and what was made of it."""

from dataclasses import replace

import pytest

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.communication import pass_bytes
from wan_ray.costs.hardware import ENGINE, GPUS
from wan_ray.costs.seconds import decode_seconds, denoise_seconds
from wan_ray.degrees import Degrees
from wan_ray.variants import VARIANTS

T2V_720P = Bucket("t2v-14B", "t2v", 1280, 720, 81, 50)
SERIAL_S = 45.0  # of the release, per clip: text encoder and VAE, while the DiT waits

# The TFLOP/s and GB/s that fit, and seconds per clip of T2V-14B at 720P on 1, 2, 4, 8 GPUs with Ulysses and FSDP.
PUBLISHED = {
    "H800": (364, 150, {1: 1837.9, 2: 945.1, 4: 497.0, 8: 287.9}),
    "A800": (197, 150, {1: 3342.6, 2: 1722.0, 4: 886.1, 8: 469.9}),
    "H20": (95, 330, {1: 6935.5, 2: 3488.4, 4: 1775.8, 8: 980.5}),
}


def seconds(bucket: Bucket, gpu: str, degrees: Degrees | None = None) -> float:
    architecture = VARIANTS[bucket.variant].architecture
    assert architecture is not None
    return denoise_seconds(architecture, bucket, degrees=degrees or Degrees(), gpu=GPUS[gpu], gpus_per_node=8)


@pytest.mark.parametrize("machine", PUBLISHED)
def test_scaling_is_as_published(machine: str) -> None:
    teraflops, link, points = PUBLISHED[machine]
    rate = teraflops * 1e12 / ENGINE
    gpu = replace(GPUS["H100-80GB"], matmul=rate, attention=rate, bandwidth=1e30, link=link * 1e9)
    architecture = VARIANTS["t2v-14B"].architecture
    assert architecture is not None
    for ranks, measured in points.items():
        found = denoise_seconds(
            architecture, T2V_720P, degrees=Degrees(ulysses=ranks), gpu=gpu, gpus_per_node=8, fsdp=ranks > 1
        )
        assert found + SERIAL_S == pytest.approx(measured, rel=0.06)


def test_one_gpu_takes_as_long_as_published() -> None:
    assert seconds(T2V_720P, "H100-80GB") == pytest.approx(1837.9 - SERIAL_S, rel=0.03)
    assert seconds(T2V_720P, "A100-80GB") == pytest.approx(3342.6 - SERIAL_S, rel=0.03)
    assert seconds(Bucket("i2v-14B-720P", "i2v", 0, 0, 81, 40), "H100-80GB") == pytest.approx(
        1491.6 - SERIAL_S, rel=0.03
    )


def test_a_clip_without_guidance_takes_half_and_gains_nothing_from_the_second_pass_rank() -> None:
    unguided = T2V_720P._replace(num_unguided_steps=50)
    assert seconds(unguided, "H100-80GB") == pytest.approx(seconds(T2V_720P, "H100-80GB") / 2)
    assert seconds(unguided, "H100-80GB", Degrees(cfg=2)) >= seconds(unguided, "H100-80GB")


def test_a_step_without_guidance_takes_as_long_as_any_where_the_second_pass_has_a_rank() -> None:
    partly = T2V_720P._replace(num_unguided_steps=20)
    assert seconds(partly, "H100-80GB", Degrees(cfg=2)) == seconds(T2V_720P, "H100-80GB", Degrees(cfg=2))
    assert seconds(partly, "H100-80GB") == pytest.approx(0.8 * seconds(T2V_720P, "H100-80GB"), rel=1e-3)


def test_ranks_send_what_the_performance_map_says() -> None:
    architecture = VARIANTS["t2v-14B"].architecture
    assert architecture is not None
    tokens = T2V_720P.num_tokens
    assert pass_bytes(architecture, tokens, degrees=Degrees(ulysses=8)).exchange == pytest.approx(13.5e9, rel=0.02)
    assert pass_bytes(architecture, tokens, degrees=Degrees(ring=8)).ring == pytest.approx(54e9, rel=0.02)
    sharded = pass_bytes(architecture, tokens, degrees=Degrees(ulysses=8), fsdp=True)
    assert sharded.weights == pytest.approx(25e9, rel=0.02)
    assert pass_bytes(architecture, tokens, degrees=Degrees(cfg=2)).exchange == 0


def test_heads_that_do_not_divide_cost_more() -> None:
    small = Bucket("t2v-1.3B", "t2v", 832, 480, 81, 50)  # of 12 heads
    assert seconds(small, "H100-80GB", Degrees(ulysses=8)) > seconds(small, "H100-80GB", Degrees(cfg=2, ulysses=4))


def test_decoding_takes_what_was_logged() -> None:
    assert decode_seconds(T2V_720P, GPUS["H100-80GB"]) == pytest.approx(9.5, rel=0.02)
    assert decode_seconds(T2V_720P._replace(width=832, height=480), GPUS["H100-80GB"]) == pytest.approx(4.1, rel=0.02)
