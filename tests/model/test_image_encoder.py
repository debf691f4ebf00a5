"""The image encoder's names, sizes and dtypes; that its numbers are right is for tests/parity."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_ray.errors import CheckpointError
from wan_ray.model.debug import DebugSizes, write_debug_checkpoint
from wan_ray.model.image_encoder import (
    IMAGE_ENCODER_FILE,
    ImageEncoderArchitecture,
    build_image_encoder,
    encode_image,
    image_encoder_tensors,
)
from wan_ray.model.key_maps import image_encoder_names_from_released
from wan_ray.model.weights import TensorFiles, check_shapes, load_, shapes_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("i2v-checkpoint")
    write_debug_checkpoint(out, kind="i2v")
    return out


@pytest.fixture(scope="module")
def stored(folder: Path) -> TensorFiles:
    return TensorFiles.open([folder / IMAGE_ENCODER_FILE])


def changed(stored: TensorFiles, **changes: tuple[int, ...] | None) -> TensorFiles:
    """The file's tensors with other shapes, or without those that are None."""
    shapes = {name: shape for name, shape in {**stored.shapes, **changes}.items() if shape is not None}
    return TensorFiles(shapes, stored.read, stored.fingerprint)


def refusal(stored: TensorFiles) -> str:
    with pytest.raises(CheckpointError) as caught:
        tensors = image_encoder_tensors(stored)
        with torch.device("meta"):
            model = build_image_encoder(ImageEncoderArchitecture.from_shapes(tensors.shapes))
        check_shapes(shapes_of(model), tensors.shapes, what="image encoder")
    return str(caught.value)


def image(width: int, height: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_debug_checkpoint_has_the_goldens_clip_tensors_in_half_precision(
    folder: Path, debug_checkpoint: Path, golden_json: Callable[[str], dict]
) -> None:
    tensors = torch.load(folder / IMAGE_ENCODER_FILE, weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == golden_json("tiny_a")["clip"]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert tensors["log_scale"].item() == pytest.approx(2.6593, abs=1e-3)
    assert not (debug_checkpoint / IMAGE_ENCODER_FILE).exists()


def test_its_sizes_are_read_off_the_file_and_the_last_block_is_not_among_them(stored: TensorFiles) -> None:
    tensors = image_encoder_tensors(stored)
    assert "visual.transformer.2.norm1.weight" in stored.shapes
    assert not any(name.startswith("encoder.layers.2.") for name in tensors.shapes)
    assert ImageEncoderArchitecture.from_shapes(tensors.shapes) == DebugSizes().image_encoder
    assert tensors.fingerprint == stored.fingerprint


def test_one_released_tensor_holds_queries_keys_and_values_in_this_order(stored: TensorFiles) -> None:
    tensors = image_encoder_tensors(stored)
    for leaf in ("weight", "bias"):
        whole = stored.read(f"visual.transformer.1.attn.to_qkv.{leaf}")
        for part, letter in enumerate("qkv"):
            name = f"encoder.layers.1.self_attn.{letter}_proj.{leaf}"
            assert tensors.shapes[name] == (1280, *whole.shape[1:])
            assert torch.equal(tensors.read(name), whole[1280 * part : 1280 * (part + 1)])


def test_embeddings_lose_their_leading_dims_of_one(stored: TensorFiles) -> None:
    tensors = image_encoder_tensors(stored)
    positions = tensors.read("embeddings.position_embedding.weight")
    assert torch.equal(positions, stored.read("visual.pos_embedding")[0])
    assert torch.equal(tensors.read("embeddings.class_embedding"), stored.read("visual.cls_embedding")[0, 0])


@pytest.mark.parametrize(
    "name", ["log_scale", "textual.blocks.0.attn.q.weight", "visual.head", "visual.post_norm.bias"]
)
def test_what_is_never_run_has_no_name(name: str) -> None:
    assert image_encoder_names_from_released(name) == ()


@pytest.mark.parametrize("name", ["visual.transformer.0.attn.to_q.weight", "visual.proj", "blocks.0.norm1.weight"])
def test_a_tensor_the_release_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown image encoder tensor '{name}'"):
        image_encoder_names_from_released(name)


def test_what_is_missing_or_of_another_size_is_named(stored: TensorFiles) -> None:
    missing = changed(stored, **{"visual.transformer.0.norm2.bias": None, "visual.pos_embedding": (1, 577, 1280)})
    assert refusal(missing) == (
        "the image encoder does not fit its weights: missing encoder.layers.0.layer_norm2.bias; "
        "misshaped embeddings.position_embedding.weight [577, 1280] instead of [257, 1280]"
    )
    no_norm = changed(stored, **{"visual.pre_norm.weight": None})
    assert refusal(no_norm) == "not a CLIP image encoder: tensor 'pre_layrnorm.weight' is missing"
    wide = changed(stored, **{"visual.pre_norm.weight": (1281,)})
    assert refusal(wide).startswith("the image encoder is 1281 wide, which is not a multiple of 80")
    scalar = changed(stored, **{"visual.pre_norm.weight": ()})
    assert refusal(scalar) == "not a CLIP image encoder: a tensor has another rank"
    other = TensorFiles({"a": ()}, stored.read, "")
    assert refusal(other) == "not a CLIP image encoder: tensor 'pre_layrnorm.weight' is missing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_built_on_meta_and_filled_gives_257_features_of_any_image(
    stored: TensorFiles, dtype: torch.dtype
) -> None:
    tensors = image_encoder_tensors(stored)
    with torch.device("meta"):
        encoder = build_image_encoder(ImageEncoderArchitecture.from_shapes(tensors.shapes))
    load_(encoder, tensors, device=CPU, dtype_of=lambda _: dtype, what="image encoder")
    encoder.to(CPU)
    for size in ((224, 224), (500, 31), (40, 700)):
        features = encode_image(encoder, image(*size))
        assert features.shape == (257, 1280) and features.dtype == dtype
        assert torch.isfinite(features).all()
