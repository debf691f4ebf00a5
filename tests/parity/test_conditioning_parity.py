"""Image features, image conditions and VACE contexts against the released code's, diffusers' and transformers'."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from wan_ray.model.conditioning import (
    first_frame_condition,
    fit_last_frame,
    letterbox_reference,
    vace_context,
)
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.image_encoder import (
    IMAGE_ENCODER_FILE,
    ImageEncoderArchitecture,
    build_image_encoder,
    encode_image,
    image_encoder_tensors,
)
from wan_ray.model.key_maps import vae_name_from_diffusers
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.model.weights import TensorFiles, load_, shapes_of
from wan_ray.sizes import image_to_video_size

CPU = torch.device("cpu")
HD, SD = 1280 * 720, 832 * 480

Golden = Callable[[str], tuple[dict[str, Tensor], dict[str, object]]]
GoldenJson = Callable[[str], dict]
RelativeError = Callable[[Tensor, Tensor], float]


def filled(stored: TensorFiles) -> CLIPVisionModel:
    tensors = image_encoder_tensors(stored)
    with torch.device("meta"):
        encoder = build_image_encoder(ImageEncoderArchitecture.from_shapes(tensors.shapes))
    load_(encoder, tensors, device=CPU, dtype_of=lambda _: torch.float32, what="image encoder")
    return encoder.to(CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("i2v-checkpoint")
    write_debug_checkpoint(out, kind="i2v")
    return out


@pytest.fixture(scope="module")
def vae(folder: Path) -> WanVAE:
    stored = TensorFiles.open([folder / "Wan2.1_VAE.pth"])
    with torch.device("meta"):
        model = WanVAE(VAEArchitecture.from_shapes(stored.shapes))
    load_(model, stored, device=CPU, dtype_of=lambda _: torch.float32, what="VAE")
    return model


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CLIPVisionModel:
    return filled(TensorFiles.open([folder / IMAGE_ENCODER_FILE]))


@pytest.fixture(scope="module")
def diffusers_vae(vae: WanVAE) -> Any:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval().requires_grad_(False)
    weights = vae.state_dict()
    theirs.load_state_dict({k: weights[vae_name_from_diffusers(k, num_res_blocks=1)] for k in theirs.state_dict()})
    return theirs


def pixels(image_HWC: Tensor) -> Tensor:
    return (image_HWC.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("kind", "size"), [("i2v", (96, 64)), ("flf2v", (48, 32))])
def test_an_image_gives_the_released_condition(
    vae: WanVAE, golden: Golden, golden_json: GoldenJson, relative_error: RelativeError, kind: str, size: tuple
) -> None:
    tensors, request = golden(kind)
    first = pixels(tensors["image"])
    width, height = image_to_video_size(first.shape[2], first.shape[1], golden_json(f"a/{kind}")["max_area"])
    assert (width, height) == size
    last = fit_last_frame(pixels(tensors["last_image"]), width=150, height=100) if kind == "flf2v" else None
    found = first_frame_condition(
        vae, first, width=width, height=height, num_frames=request["num_frames"], last_CHW=last
    )
    assert torch.equal(found[:4], tensors["y"][:4])
    assert relative_error(found, tensors["y"]) < 1e-5


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_an_image_gives_the_released_features(
    encoder: CLIPVisionModel, golden: Golden, relative_error: RelativeError, kind: str
) -> None:
    tensors, _ = golden(kind)
    images = [tensors[name] for name in ("image", "last_image") if name in tensors]
    assert len(images) == len(tensors["clip_features.first64"]) == {"i2v": 1, "flf2v": 2}[kind]
    for image, wanted in zip(images, tensors["clip_features.first64"], strict=True):
        assert relative_error(encode_image(encoder, pixels(image))[:, :64], wanted) < 1e-5


@pytest.mark.parametrize("kind", ["vace-r2v", "vace-mv2v", "vace-v2v"])
def test_frames_mask_and_references_give_the_released_context(
    vae: WanVAE, golden: Golden, relative_error: RelativeError, kind: str
) -> None:
    tensors, request = golden(kind)
    references = [tensors[name][:, 0] for name in ("ref0", "ref1") if name in tensors]
    sizes = {name: request[name] for name in ("width", "height", "num_frames")}
    wanted = tensors["vace_context"]
    found = vace_context(vae, tensors["frames"], tensors["mask_in"][0], references, **sizes)
    assert torch.equal(found[32:], wanted[32:])
    assert relative_error(found, wanted) < 1e-5
    if kind == "vace-r2v":
        assert len(references) == 2
        assert torch.equal(vace_context(vae, None, None, references, **sizes), found)


@pytest.mark.parametrize(
    ("image", "at_720p", "at_480p"),
    [
        ((1280, 720), (1280, 720), (832, 464)),
        ((1920, 1080), (1280, 720), (832, 464)),
        ((832, 480), (1248, 720), (832, 464)),
        ((480, 832), (720, 1248), (480, 832)),
        ((1024, 1024), (960, 960), (624, 624)),
        ((1242, 375), (1744, 512), (1136, 336)),
        ((960, 600), (1200, 752), (784, 496)),
    ],
)
def test_an_image_s_video_has_the_size_the_released_code_was_seen_to_give(
    image: tuple[int, int], at_720p: tuple[int, int], at_480p: tuple[int, int]
) -> None:
    assert image_to_video_size(*image, HD) == at_720p
    assert image_to_video_size(*image, SD) == at_480p


def test_images_of_thirty_random_aspects_give_the_sizes_of_the_released_formula() -> None:
    random = np.random.default_rng(0)
    for width, height in random.integers(200, 4000, size=(30, 2)).tolist():
        for max_pixels in (HD, SD):
            sides = []
            for area in (np.float64(max_pixels) / (height / width), np.float64(max_pixels) * (height / width)):
                latents = np.floor(np.floor(np.sqrt(area) / 8) / 2) * 2
                sides.append(8 * int(np.rint(latents)))
            found = image_to_video_size(width, height, max_pixels)
            assert found == tuple(sides), (width, height, max_pixels)
            assert found[0] * found[1] <= max_pixels and all(side % 16 == 0 for side in found)


@pytest.mark.parametrize("num_frames", [17, 33, 81])
@pytest.mark.parametrize("with_last", [False, True])
def test_conditions_agree_with_diffusers_at_every_length(
    vae: WanVAE, diffusers_vae: Any, relative_error: RelativeError, num_frames: int, with_last: bool
) -> None:
    from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline

    first = noise(3, 32, 48)
    last = fit_last_frame(noise(3, 80, 60, seed=1), width=48, height=32) if with_last else None
    found = first_frame_condition(vae, first, width=48, height=32, num_frames=num_frames, last_CHW=last)
    pipeline = WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=diffusers_vae, scheduler=None)
    _, wanted = pipeline.prepare_latents(
        first[None],
        1,
        height=32,
        width=48,
        num_frames=num_frames,
        dtype=torch.float32,
        device=CPU,
        last_image=None if last is None else last[None],
    )
    assert torch.equal(found[:4], wanted[0, :4])
    assert relative_error(found, wanted[0]) < 1e-5


@pytest.fixture(scope="module")
def vace_pipeline(diffusers_vae: Any) -> Any:
    from diffusers import WanVACEPipeline, WanVACETransformer3DModel

    transformer = WanVACETransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1, vace_layers=[0], text_dim=8, freq_dim=8
    )
    return WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=diffusers_vae, scheduler=None, transformer=transformer
    )


# Not one frame with two references: diffusers, as the released code, then makes too few mask frames, and fails.
@pytest.mark.parametrize(("num_frames", "num_references"), [(1, 0), (1, 1), (5, 2), (17, 0), (17, 2)])
def test_contexts_under_a_soft_mask_agree_with_diffusers(
    vae: WanVAE, vace_pipeline: Any, relative_error: RelativeError, num_frames: int, num_references: int
) -> None:
    frames = noise(3, num_frames, 32, 48)
    mask = noise(num_frames, 32, 48, seed=1) / 2 + 0.5
    references = [noise(3, 32, 48, seed=2 + index) for index in range(num_references)]
    found = vace_context(vae, frames, mask, references, width=48, height=32, num_frames=num_frames)
    # diffusers puts each reference before those before it, the released code keeps their order (vace-r2v shows it).
    reverse = [references[::-1]]
    latents = vace_pipeline.prepare_video_latents(frames[None], mask[None, None], reverse, device=CPU)
    channels = vace_pipeline.prepare_masks(mask[None, None], reverse)
    wanted = torch.cat([latents, channels], dim=1)[0]
    assert torch.equal(found[32:], wanted[32:])
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("size", [(200, 120), (64, 160), (48, 32), (480, 32)])
def test_references_are_letterboxed_as_in_diffusers(vace_pipeline: Any, size: tuple[int, int]) -> None:
    levels = ((noise(size[1], size[0], 3) + 1) * 127.5).to(torch.uint8)
    _, _, [[wanted]] = vace_pipeline.preprocess_conditions(
        reference_images=Image.fromarray(levels.numpy()), height=32, width=48, num_frames=1, device=CPU
    )
    torch.testing.assert_close(letterbox_reference(pixels(levels), width=48, height=32), wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def whole_tower() -> CLIPVisionModel:
    """transformers' own model with all its blocks, of random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=14,
        image_size=224,
        hidden_act="gelu",
    )
    model = CLIPVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def test_features_are_transformers_last_but_one_and_load_from_its_folder(
    whole_tower: CLIPVisionModel, relative_error: RelativeError, tmp_path: Path
) -> None:
    whole_tower.save_pretrained(tmp_path)
    encoder = filled(TensorFiles.open([tmp_path / "model.safetensors"]))
    assert len(encoder.encoder.layers) == 3
    image = (noise(224, 224, 3) + 1) / 2
    normal = (image - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)
    wanted = whole_tower(normal.permute(2, 0, 1)[None], output_hidden_states=True).hidden_states[-2][0]
    assert relative_error(encode_image(encoder, image.permute(2, 0, 1) * 2 - 1), wanted) < 1e-5


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_names_of_either_transformers_version_are_read(whole_tower: CLIPVisionModel, prefix: str) -> None:
    state = {name.removeprefix("vision_model."): tensor for name, tensor in whole_tower.state_dict().items()}
    stored = {prefix + name: tensor for name, tensor in state.items()}
    stored[f"{prefix}embeddings.position_ids"] = torch.arange(257)[None]  # older ones store it
    encoder = filled(TensorFiles({k: tuple(v.shape) for k, v in stored.items()}, stored.__getitem__, ""))
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.named_parameters())


def test_the_released_clip_has_the_released_tensors(
    released_shapes: Callable[[str], Mapping[str, tuple[int, ...]]],
) -> None:
    stored = TensorFiles(released_shapes("clip"), lambda name: torch.empty(()), "")
    tensors = image_encoder_tensors(stored)
    architecture = ImageEncoderArchitecture.from_shapes(tensors.shapes)
    assert architecture == ImageEncoderArchitecture(dim=1280, ffn_dim=5120, num_layers=31)
    with torch.device("meta"):
        model = build_image_encoder(architecture)
    assert shapes_of(model) == tensors.shapes
    assert model.config.num_attention_heads == 16
