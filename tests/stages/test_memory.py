"""What stages do without enough memory, in processes that the system refuses it to; and what counts as that."""

from pathlib import Path

import pytest
import torch
from little_memory import at_most_more, run_alone

from wan_ray.stages.memory import is_out_of_memory

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def decoded(debug_checkpoint: Path) -> dict[str, dict]:
    return run_alone(Path(__file__).with_name("decode_short_of_memory.py"), debug_checkpoint)


def test_a_clip_that_cannot_be_decoded_whole_is_decoded_in_tiles_to_the_same_bytes(decoded: dict[str, dict]) -> None:
    assert decoded["enough"]["rendered_on"] == {}
    assert [decoded[name]["rendered_on"] for name in ("little", "less")] == [
        {"decode_tile": "256"},
        {"decode_tile": "128"},
    ]
    assert len({decoded[name]["sha256"] for name in ("enough", "little", "less")}) == 1


def test_rows_of_the_same_shape_begin_with_what_had_the_memory_and_others_as_ever(decoded: dict[str, dict]) -> None:
    assert decoded["enough, after little"]["rendered_on"] == {"decode_tile": "256"}
    assert decoded["small, with little"] == decoded["small"]
    assert decoded["small"]["rendered_on"] == {}


def test_each_step_down_is_told_once(decoded: dict[str, dict]) -> None:
    told = {name: [line.split(" error=")[0] for line in one["told"]] for name, one in decoded.items() if "told" in one}
    assert {name: lines for name, lines in told.items() if lines} == {
        "little": ["out of memory, trying a leaner way: stage=decode bucket=debug at 512x512x5 from=None to=256"],
        "less": ["out of memory, trying a leaner way: stage=decode bucket=debug at 512x512x5 from=256 to=128"],
    }


def test_without_memory_for_small_tiles_the_row_fails_with_what_to_do_and_the_process_goes_on(
    decoded: dict[str, dict],
) -> None:
    assert "raise stages.decode.num_gpus" in decoded["none"]["message"]
    assert "can't allocate memory" in decoded["none"]["message"]
    assert decoded["small, after none"] == decoded["small"]


@pytest.fixture(scope="module")
def denoised(debug_checkpoint: Path) -> dict[str, dict]:
    return run_alone(Path(__file__).with_name("denoise_short_of_memory.py"), debug_checkpoint)


def test_a_step_without_memory_is_taken_again_with_offloaded_blocks_and_the_latents_have_the_same_bits(
    denoised: dict[str, dict],
) -> None:
    """It goes on from the step: on_step hears of each once."""
    wanted = {**denoised["enough"], "offload": "blocks"}
    assert denoised["enough"]["steps"] == [1, 2, 3, 4, 5]
    assert denoised["refused"] == {**wanted, "told": 1}
    assert denoised["again"] == wanted


def test_blocks_are_on_the_device_for_rows_of_other_shapes(denoised: dict[str, dict]) -> None:
    assert denoised["small, after refused"] == denoised["small"]
    assert denoised["small"]["offload"] is None


def test_without_memory_for_offloaded_blocks_the_row_fails_with_what_to_do_and_the_process_goes_on(
    denoised: dict[str, dict],
) -> None:
    assert denoised["refused for good"]["steps"] == [1, 2]
    message = denoised["refused for good"]["message"]
    assert message.startswith("out of memory for debug at 416x240x5 in any way this stage has; render fewer pixels")
    assert denoised["after all"] == {**denoised["enough"], "offload": "blocks"}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return run_alone(Path(__file__).with_name("encode_short_of_memory.py"), tmp_path_factory.mktemp("encode"))


def test_an_image_that_cannot_be_encoded_whole_is_encoded_in_tiles_to_the_same_condition(
    encoded: dict[str, dict],
) -> None:
    """On a CPU it does not help that models wait in host memory, which is tried first."""
    in_tiles = {"encode_offload": "model", "encode_tile": "256"}
    assert [encoded[name]["rendered_on"] for name in ("little", "small", "again")] == [in_tiles, {}, in_tiles]
    assert [encoded[name]["told"] for name in ("little", "small", "again")] == [2, 0, 0]
    assert max(encoded[name]["farthest"] for name in ("little", "again")) < 5e-6


def test_a_refused_allocation_is_told_from_other_errors() -> None:
    with at_most_more(1 << 28):
        for allocate in (lambda: torch.empty(1 << 30, dtype=torch.uint8), lambda: bytearray(1 << 30)):
            with pytest.raises((RuntimeError, MemoryError)) as refused:
                allocate()
            assert is_out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
    # What only GPUs raise: torch's own class for it, and cudaHostAlloc's words.
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
