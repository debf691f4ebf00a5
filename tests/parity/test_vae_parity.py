"""The VAE against what the released code computed, and against diffusers on the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wan_ray.errors import CheckpointError
from wan_ray.model.debug import random_tensor
from wan_ray.model.key_maps import vae_name_from_diffusers, vae_num_res_blocks_from_diffusers
from wan_ray.model.vae import LATENTS_MEAN, LATENTS_STD, VAEArchitecture, WanVAE

GOLDENS = Path(__file__).parent.parent / "goldens" / "a"


def random_vae(*, num_res_blocks: int) -> WanVAE:
    model = WanVAE(VAEArchitecture(base_dim=8, num_res_blocks=num_res_blocks))
    model.load_state_dict({k: random_tensor("vae", k, tuple(v.shape), 0) for k, v in model.state_dict().items()})
    return model


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", ["t2v", "t2v-dpm", "t2i"])
def test_decode_gives_the_released_frames(kind: str):
    golden = load_file(GOLDENS / f"{kind}.safetensors")
    video = random_vae(num_res_blocks=1).decode(golden["latents"][None])[0]
    assert video.shape == golden["video"].shape
    # The golden is rounded to float16, a larger error than the one allowed here.
    assert relative_error(video.half().float(), golden["video"].float()) < 1e-4


@pytest.fixture(scope="module", params=[1, 2])
def pair(request: pytest.FixtureRequest):
    """diffusers' VAE and ours with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=request.param).eval().requires_grad_(False)
    ours = random_vae(num_res_blocks=request.param)
    weights = ours.state_dict()
    names = {name: vae_name_from_diffusers(name, num_res_blocks=request.param) for name in theirs.state_dict()}
    assert sorted(names.values()) == sorted(weights)
    theirs.load_state_dict({name: weights[released] for name, released in names.items()})
    return theirs, ours


@pytest.mark.parametrize("num_latent_frames", [1, 4])
def test_decode_agrees_with_diffusers(pair, num_latent_frames: int):
    theirs, ours = pair
    latents = torch.randn(2, 16, num_latent_frames, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = theirs.decode(latents * per_channel(LATENTS_STD) + per_channel(LATENTS_MEAN)).sample
    assert relative_error(ours.decode(latents), wanted) < 1e-5


@pytest.mark.parametrize("num_frames", [1, 13])
def test_encode_agrees_with_diffusers(pair, num_frames: int):
    theirs, ours = pair
    video = torch.rand(2, 3, num_frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = (theirs.encode(video).latent_dist.mode() - per_channel(LATENTS_MEAN)) / per_channel(LATENTS_STD)
    assert relative_error(ours.encode(video), wanted) < 1e-5


def test_the_latent_statistics_are_those_diffusers_publishes(pair):
    theirs, _ = pair
    assert tuple(theirs.config.latents_mean) == LATENTS_MEAN
    assert tuple(theirs.config.latents_std) == LATENTS_STD


def test_the_number_of_residual_blocks_is_read_off_diffusers_names(pair):
    theirs, ours = pair
    assert vae_num_res_blocks_from_diffusers(theirs.state_dict()) == ours.architecture.num_res_blocks
    with pytest.raises(CheckpointError, match="at least 2 expected"):
        vae_num_res_blocks_from_diffusers(ours.state_dict())


@pytest.mark.parametrize(
    "name", ["encoder.conv1.weight", "decoder.up_blocks.0.upsampler.time_conv.weight", "quant_conv.weight.scale"]
)
def test_a_name_that_diffusers_does_not_use_is_refused(name: str):
    with pytest.raises(CheckpointError, match="unknown VAE tensor"):
        vae_name_from_diffusers(name, num_res_blocks=2)


def per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)
