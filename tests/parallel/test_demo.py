"""A clip of the demo's trained weights is the same clip on a gang of any kind, and shows what its prompt asks for."""

import pytest

BITS = ["ulysses 2", "cfg 2, ulysses 3", "ulysses 3, fsdp", "cfg 2, fsdp, offload", "xfuser ulysses 3"]
ROUNDED = ["ring 2, fsdp", "ulysses 3, ring 2", "xfuser ring 2"]


@pytest.fixture(scope="module")
def report(launch) -> dict:
    return launch("demo")


def test_one_process_shows_what_is_asked_for(report):
    assert set(report["gangs"]) == {*BITS, *ROUNDED}
    assert report["seen"] == report["asked"]


@pytest.mark.parametrize("gang", BITS)
def test_without_a_ring_the_clip_has_the_bits_of_one_process(report, gang):
    found = report["gangs"][gang]
    assert {rank["digest"] for rank in found["ranks"]} == {report["digest"]}
    assert found["levels"] == 0
    assert found["seen"] == report["asked"]


@pytest.mark.parametrize("gang", ROUNDED)
def test_with_a_ring_no_pixel_differs_by_more_than_one_level_and_few_do(report, gang):
    found = report["gangs"][gang]
    assert len({rank["digest"] for rank in found["ranks"]}) == 1
    assert 0 < max(rank["off"] for rank in found["ranks"]) < 1e-5
    assert found["levels"] <= 1
    # Measured: 93 dB, a value in 30,000; eyes tell clips apart below 40 or so.
    assert found["psnr_db"] is None or found["psnr_db"] > 80
    assert found["seen"] == report["asked"]
