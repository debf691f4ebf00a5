import torch

from wan_ray.model.text_encoder import clean_prompt
from wan_ray.stages import encode as encode_module
from wan_ray.stages.encode import EncodeStage


def test_an_item_gets_an_embedding_of_each_text_as_long_as_the_text(encode, make_item):
    item = encode(make_item(prompt="A red car", negative_prompt=""))
    num_tokens = len(encode.tokenizer.encode("A red car").ids)
    assert item.tensors["context"].shape == (num_tokens, 4096)
    assert item.tensors["negative_context"].shape == (1, 4096)  # the end token alone
    assert item.weights == {"text_encoder": encode.fingerprint}


def test_equal_texts_are_encoded_once(encode, make_item):
    first, second, third = (encode(make_item(prompt=prompt)) for prompt in ("a", "a", "b"))
    assert encode.texts_encoded == 3  # a, the negative prompt, b
    assert torch.equal(first.tensors["context"], second.tensors["context"])
    assert torch.equal(first.tensors["negative_context"], third.tensors["negative_context"])
    assert not torch.equal(first.tensors["context"], third.tensors["context"])


def test_a_guidance_of_one_needs_no_negative_prompt(encode, make_item):
    item = encode(make_item(guidance_scale=1.0))
    assert set(item.tensors) == {"context"}
    assert encode.texts_encoded == 1


def test_an_embedding_does_not_depend_on_what_was_encoded_before(encode, make_item):
    fresh = encode(make_item(prompt="雪夜")).tensors["context"]
    used = EncodeStage(encode.encoder, encode.tokenizer, encode.fingerprint)
    for prompt in ("x", "A much longer prompt, " * 20, "🚗"):
        used(make_item(prompt=prompt))
    assert torch.equal(used(make_item(prompt="雪夜")).tensors["context"], fresh)


def test_a_text_longer_than_512_tokens_is_cut_to_512(encode, make_item):
    assert encode(make_item(prompt="x y " * 1000)).tensors["context"].shape[0] == 512


def test_texts_are_cleaned_as_in_training(encode, make_item):
    assert clean_prompt("  a &amp;amp; b\n\t c ") == "a & b c"
    raw, clean = (encode(make_item(prompt=p)).tensors["context"] for p in ("  a &amp;amp; b\n\t c ", "a & b c"))
    assert torch.equal(raw, clean)


def test_the_least_used_embeddings_are_dropped_when_memory_is_full(encode, make_item, monkeypatch):
    monkeypatch.setattr(encode_module, "CACHE_BYTES", 40 * 4096 * 4)
    prompts = ["red " * 5, "green " * 5, "blue " * 5, "red " * 5]
    for prompt in prompts:
        encode(make_item(prompt=prompt, guidance_scale=1.0))
    assert encode.texts_encoded <= len(prompts)
    assert sum(tensor.nbytes for tensor in encode._kept.values()) == encode._kept_bytes <= 40 * 4096 * 4
    for prompt in ("one " * 30, "two " * 30):
        encode(make_item(prompt=prompt, guidance_scale=1.0))
    before = encode.texts_encoded
    encode(make_item(prompt=prompts[0], guidance_scale=1.0))
    assert encode.texts_encoded == before + 1
