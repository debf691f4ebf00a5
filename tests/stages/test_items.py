import json
from dataclasses import replace

import pytest
import torch

from wan_ray.errors import StageError
from wan_ray.stages.items import Clip, Failure, Item


def crossed(item):
    """The item after a trip through the columns of a dataset."""
    row = item.to_row()
    assert {type(row["item"]), type(row["tensors"]), type(row["clip"])} == {str, bytes}
    return Item.from_row(row)


def test_an_item_crosses_whole(make_item):
    item = replace(
        make_item(id="夜/1", prompt="雪夜 🚗\u2028", labels={"天气": "雪"}, seed=2**63 - 1, guidance_scale=0.1),
        extra={"z": [1, {"日": None}], "f": 0.1, "s": "\x00"},
        seconds={"encode": 0.25},
        weights={"text_encoder": "ab"},
    )
    assert crossed(item) == item
    assert "雪夜" in item.to_row()["item"]


def test_tensors_cross_bit_for_bit_in_their_own_dtype(make_item):
    bfloat16 = torch.tensor([1.0, float("nan"), -0.0, 3e38], dtype=torch.bfloat16)
    tensors = {"a": bfloat16, "b": torch.randn(2, 3).T, "c": torch.empty(0, 4096), "d": torch.arange(6)[::2]}
    arrived = crossed(replace(make_item(), tensors=tensors)).tensors
    assert set(arrived) == set(tensors)
    for name, tensor in tensors.items():
        assert arrived[name].dtype == tensor.dtype
        bits = tensor.contiguous().view(torch.uint8)
        assert torch.equal(arrived[name].view(torch.uint8), bits)


def test_tensors_that_share_memory_cross(make_item):
    whole = torch.randn(4, 4)
    tensors = {"context": whole, "negative_context": whole, "part": whole[1:]}
    arrived = crossed(replace(make_item(), tensors=tensors)).tensors
    assert all(torch.equal(arrived[name], tensor) for name, tensor in tensors.items())


def test_a_prompt_that_equals_the_negative_prompt_crosses_after_encoding(encode, make_item):
    item = crossed(encode(make_item(prompt="blurry", negative_prompt="blurry")))
    assert torch.equal(item.tensors["context"], item.tensors["negative_context"])


def test_a_clip_crosses_as_bytes(make_item):
    clip = Clip(data=bytes(range(256)), suffix=".mp4", num_frames=5)
    assert crossed(replace(make_item(), clip=clip)).clip == clip


def test_a_failed_item_crosses_with_its_cause_and_without_its_payload(make_item):
    item = replace(make_item(), tensors={"a": torch.ones(1)}, clip=Clip(data=b"x", suffix=".png", num_frames=1))
    failed = crossed(item.failed("denoise", StageError("GPU gone: 显存不足")))
    assert failed.failure == Failure(stage="denoise", type="StageError", message="GPU gone: 显存不足")
    assert (failed.tensors, failed.clip) == ({}, None)
    with pytest.raises(AssertionError):
        _ = failed.sound


def test_an_error_without_words_still_says_what_it_is(make_item):
    assert make_item().failed("decode", MemoryError()).failure.message == "MemoryError()"
    assert len(make_item().failed("decode", StageError("x" * 10_000)).failure.message) == 2000


def test_an_item_without_a_request_crosses():
    item = Item(name="refused-1", id="1", row=None, request=None, prompt=None)
    assert crossed(item) == item
    assert json.loads(item.to_row()["item"])["request"] is None
