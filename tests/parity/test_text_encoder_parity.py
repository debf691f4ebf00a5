"""The text encoder against what the released code computed, and against diffusers' way of calling it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint, find_checkpoint
from wan_ray.model.key_maps import text_encoder_name_from_released, text_encoder_name_to_released
from wan_ray.model.text_encoder import (
    TextEncoderArchitecture,
    build_text_encoder,
    clean_prompt,
    encode_prompt,
    token_ids,
)
from wan_ray.model.weights import shapes_of

CPU = torch.device("cpu")
GOLDEN_PROMPTS = (("prompt", 0), ("negative_prompt", 1))
PROMPTS = (
    "A red car drives along a sunny highway",
    "雪后的城市街道，行人撑伞走过斑马线",
    "emoji 🚗🌧️, rare 𠮷 and  blanks\n",
    "Fish &amp;amp; chips, Â£5, ﬁne ‘quotes’",
    "",
    "slow pan over the harbour " * 200,
)

Golden = Callable[[str], tuple[dict[str, Tensor], dict[str, object]]]
RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def checkpoint(debug_checkpoint: Path) -> Checkpoint:
    return find_checkpoint(debug_checkpoint)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> Any:
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_pipeline

    return diffusers_pipeline(checkpoint, flow_shift=5.0)


@pytest.mark.parametrize("kind", ["t2v", "t2i"])
def test_token_ids_are_those_of_the_released_tokenizer(checkpoint: Checkpoint, golden: Golden, kind: str) -> None:
    tensors, request = golden(kind)
    tokenizer = checkpoint.load_tokenizer()
    for field, row in GOLDEN_PROMPTS:
        wanted = tensors["ids"][row][tensors["mask"][row].bool()].tolist()
        assert token_ids(tokenizer, request[field]) == wanted


def test_embeddings_are_the_released_ones(
    checkpoint: Checkpoint, golden: Golden, relative_error: RelativeError
) -> None:
    tensors, request = golden("t2v")
    encoder, _ = checkpoint.load_text_encoder(dtype=torch.float32, device=CPU)
    tokenizer = checkpoint.load_tokenizer()
    for field, name in (("prompt", "context_prompt"), ("negative_prompt", "context_negative")):
        found = encode_prompt(encoder, token_ids(tokenizer, request[field]))
        assert relative_error(found[:, :64], tensors[f"{name}.first64"]) < 1e-5


@pytest.mark.parametrize("prompt", PROMPTS)
def test_embeddings_agree_with_those_of_a_padded_prompt_in_diffusers(
    checkpoint: Checkpoint, relative_error: RelativeError, pipeline: Any, prompt: str
) -> None:
    wanted, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
    encoder, _ = checkpoint.load_text_encoder(dtype=torch.float32, device=CPU)
    found = encode_prompt(encoder, token_ids(checkpoint.load_tokenizer(), prompt))
    assert torch.count_nonzero(wanted[0, len(found) :]) == 0
    assert relative_error(found, wanted[0, : len(found)]) < 1e-5


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_cleaned_as_diffusers_cleans_them(prompt: str) -> None:
    theirs = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan")
    assert clean_prompt(prompt) == theirs.prompt_clean(prompt)


def test_characters_outside_the_vocabulary_become_bytes_that_give_them_back(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.load_tokenizer()
    ids = token_ids(tokenizer, "🚗")
    assert tokenizer.token_to_id("<unk>") not in ids
    assert [tokenizer.id_to_token(i) for i in ids[-5:]] == ["<0xF0>", "<0x9F>", "<0x9A>", "<0x97>", "</s>"]


def test_the_released_umt5_has_the_released_tensors(
    released_shapes: Callable[[str], Mapping[str, tuple[int, ...]]],
) -> None:
    released = released_shapes("umt5-xxl")
    renamed = {text_encoder_name_from_released(name): shape for name, shape in released.items()}
    with torch.device("meta"):
        model = build_text_encoder(TextEncoderArchitecture.from_shapes(renamed))
    assert shapes_of(model) == renamed
    assert {text_encoder_name_to_released(name): shape for name, shape in shapes_of(model).items()} == released
