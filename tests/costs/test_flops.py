"""FLOPs against torch's own counter on our modules, on the meta device, and against published sums."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import (
    ImageEncoderSizes,
    TextEncoderSizes,
    VAESizes,
    denoise_flops,
    dit_context,
    dit_pass,
    image_encoder_flops,
    text_encoder_flops,
    vae_decode_flops,
    vae_encode_flops,
)
from wan_ray.model.debug import DebugSizes
from wan_ray.model.dit import DiT
from wan_ray.model.image_encoder import ImageEncoderArchitecture, build_image_encoder
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import VARIANTS, DiTArchitecture

RELEASED = ("t2v-1.3B", "t2v-14B", "i2v-14B-480P", "flf2v-14B", "vace-1.3B", "vace-14B")
KINDS = ("t2v", "i2v", "flf2v", "vace")
CLOSE = 0.02


def architecture_of(name: str) -> DiTArchitecture:
    if name in KINDS:
        return DebugSizes.of(name).dit
    found = VARIANTS[name].architecture
    assert found is not None
    return found


def counted(work: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "width", "height", "num_frames"),
    [*((kind, 160, 96, 9) for kind in KINDS), *((variant, 832, 480, 81) for variant in RELEASED)],
)
def test_a_pass_of_the_dit_is_what_torch_counts(name: str, width: int, height: int, num_frames: int) -> None:
    architecture = architecture_of(name)
    bucket = Bucket("t2v-1.3B", "t2v", width, height, num_frames, 50)
    rows, columns, frames = height // 8, width // 8, bucket.num_latent_frames
    inputs: dict[str, torch.Tensor] = {}
    with torch.device("meta"):
        model, text = DiT(architecture), torch.empty(100, architecture.text_dim)
        if architecture.image_tokens:
            inputs["image_features"] = torch.empty(architecture.image_tokens, 1280)
            inputs["condition"] = torch.empty(20, frames, rows, columns)
        if architecture.vace_layers:
            inputs["vace_context"] = torch.empty(96, frames, rows, columns)
        latents = torch.empty(1, 16, frames, rows, columns)
        prepared = counted(lambda: model.encode_context(text, **inputs))
        with torch.no_grad():
            context = model.encode_context(text, **inputs)
        passed = counted(lambda: model(latents, 500, context))
    assert dit_context(architecture, bucket.num_tokens) == pytest.approx(prepared, rel=CLOSE)
    assert dit_pass(architecture, bucket.num_tokens).flops == pytest.approx(passed, rel=CLOSE)


@pytest.mark.parametrize(
    ("sizes", "width", "height", "num_frames"),
    [
        (VAESizes(base_dim=8, num_res_blocks=1), 64, 32, 9),
        (VAESizes(base_dim=8, num_res_blocks=1), 160, 96, 1),
        (VAESizes(), 832, 480, 17),
    ],
)
def test_the_vae_is_what_torch_counts(
    sizes: VAESizes, width: int, height: int, num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: False)  # frames that move; on meta they cannot be compared
    with torch.device("meta"):
        vae = WanVAE(VAEArchitecture(base_dim=sizes.base_dim, num_res_blocks=sizes.num_res_blocks))
        latents = torch.empty(1, 16, (num_frames - 1) // 4 + 1, height // 8, width // 8)
        video = torch.empty(1, 3, num_frames, height, width)
        decoded, encoded = counted(lambda: vae.decode(latents)), counted(lambda: vae.encode(video))
    assert vae_decode_flops(width, height, num_frames, sizes) == pytest.approx(decoded, rel=CLOSE)
    assert vae_encode_flops(width, height, num_frames, sizes) == pytest.approx(encoded, rel=CLOSE)


@pytest.mark.parametrize(
    "sizes",
    [TextEncoderSizes(vocab_size=430, num_layers=2, num_heads=4, head_dim=8, ffn_dim=64), TextEncoderSizes()],
    ids=["debug", "umt5-xxl"],
)
def test_the_text_encoder_is_what_torch_counts(sizes: TextEncoderSizes) -> None:
    with torch.device("meta"):
        encoder = build_text_encoder(TextEncoderArchitecture(**vars(sizes)))
        ids = torch.zeros(1, 77, dtype=torch.long)
        found = counted(lambda: encoder(input_ids=ids))
    assert text_encoder_flops(77, sizes) == pytest.approx(found, rel=CLOSE)


@pytest.mark.parametrize(
    "sizes", [ImageEncoderSizes(ffn_dim=64, num_layers=2), ImageEncoderSizes()], ids=["debug", "vit-h"]
)
def test_the_image_encoder_is_what_torch_counts(sizes: ImageEncoderSizes) -> None:
    with torch.device("meta"):
        encoder = build_image_encoder(ImageEncoderArchitecture(**vars(sizes))).to("meta")
        image = torch.empty(1, 3, 224, 224)
        found = counted(lambda: encoder(image))
    assert image_encoder_flops(sizes) == pytest.approx(found, rel=CLOSE)


# PFLOP of a clip with guidance, and steps: the published sums, computed there for diffusers' modules.
CLIPS = [
    ("t2v-1.3B", 832, 480, 50, 28.3),
    ("t2v-1.3B", 1280, 720, 50, 125.0),
    ("t2v-14B", 832, 480, 50, 167.8),
    ("t2v-14B", 1280, 720, 50, 652.3),
    ("i2v-14B-480P", 832, 480, 40, 134.9),
    ("i2v-14B-720P", 1280, 720, 40, 523.2),
    ("flf2v-14B", 1280, 720, 40, 524.6),
    ("vace-1.3B", 832, 480, 50, 42.7),
    ("vace-14B", 832, 480, 50, 203.0),
    ("vace-14B", 1280, 720, 50, 786.0),
]


@pytest.mark.parametrize(("variant", "width", "height", "steps", "petaflop"), CLIPS)
def test_clips_cost_what_is_published(variant: str, width: int, height: int, steps: int, petaflop: float) -> None:
    bucket = Bucket(variant, "t2v", width, height, 81, steps)
    found = denoise_flops(architecture_of(variant), bucket)
    assert found == pytest.approx(petaflop * 1e15, rel=CLOSE)
    unguided = denoise_flops(architecture_of(variant), bucket._replace(num_unguided_steps=steps))
    assert unguided == pytest.approx(found / 2)


def test_the_other_models_cost_what_is_published() -> None:
    # Of diffusers' VAE, which also multiplies the zeros before a clip's first frame.
    assert vae_decode_flops(832, 480, 81) == pytest.approx(275.4e12, rel=CLOSE)
    assert vae_decode_flops(1280, 720, 81) == pytest.approx(639.2e12, rel=CLOSE)
    assert vae_encode_flops(832, 480, 81) == pytest.approx(163.7e12, rel=CLOSE)
    assert vae_encode_flops(1280, 720, 81) == pytest.approx(381.7e12, rel=CLOSE)
    assert text_encoder_flops(512) == pytest.approx(4.84e12, rel=CLOSE)
    assert image_encoder_flops() == pytest.approx(0.335e12, rel=0.06)


def test_references_are_latent_frames_and_unknown_sizes_are_the_models_own() -> None:
    vace = Bucket("vace-14B", "vace", 832, 480, 81, 50)
    assert vace._replace(num_references=2).num_tokens == vace.num_tokens * 23 // 21
    assert Bucket("i2v-14B-720P", "i2v", 0, 0, 81, 40).num_tokens == 75600
