"""The VAE's names, chunks and memory; that its numbers are right is for tests/parity."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_ray.errors import CheckpointError, RequestError
from wan_ray.model.debug import random_tensor
from wan_ray.model.vae import LATENTS_MEAN, LATENTS_STD, VAEArchitecture, WanVAE

GOLDENS = Path(__file__).parent.parent / "goldens"
TINY = VAEArchitecture(base_dim=8, num_res_blocks=1)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    model = WanVAE(TINY)
    model.load_state_dict({k: random_tensor("vae", k, tuple(v.shape), 0) for k, v in model.state_dict().items()})
    return model


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def latents(num_latent_frames: int, *, height: int = 4, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, num_latent_frames, height, width, generator=generator)


def released_shapes() -> dict[str, list[int]]:
    rows = json.loads((GOLDENS / "released_shapes.json").read_text())["vae"]
    return {name: shape for name, shape, _ in rows}


def tiny_shapes() -> dict[str, list[int]]:
    return json.loads((GOLDENS / "tiny_a.json").read_text())["vae"]


@pytest.mark.parametrize("read_shapes", [released_shapes, tiny_shapes])
def test_a_model_built_from_shapes_has_exactly_these_tensors(read_shapes: Callable[[], dict[str, list[int]]]):
    shapes = read_shapes()
    with torch.device("meta"):
        model = WanVAE(VAEArchitecture.from_shapes(shapes))
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


def test_the_architecture_of_the_release_is_read_off_its_shapes():
    assert VAEArchitecture.from_shapes(released_shapes()) == VAEArchitecture(base_dim=96, num_res_blocks=2)
    assert VAEArchitecture.from_shapes(tiny_shapes()) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.conv1.weight": None}, "no tensor 'encoder.conv1.weight'"),
        ({"encoder.downsamples.0.residual.6.weight": None}, r"\[0\] residual blocks"),
        ({"encoder.downsamples.2.residual.6.weight": [17, 17, 3, 3, 3]}, "multiples of 8"),
        ({"conv2.weight": [48, 48, 1, 1, 1]}, "48 latent channels"),
    ],
)
def test_shapes_of_another_network_are_refused(change: dict[str, list[int] | None], message: str):
    shapes = {name: shape for name, shape in (tiny_shapes() | change).items() if shape is not None}
    with pytest.raises(CheckpointError, match=message):
        VAEArchitecture.from_shapes(shapes)


def test_decode_gives_one_frame_then_four_per_latent_frame_in_range(vae: WanVAE):
    chunks = list(vae.decode_chunks(3 * latents(3)))
    assert [tuple(chunk.shape) for chunk in chunks] == [(1, 3, n, 32, 48) for n in (1, 4, 4)]
    assert max(chunk.abs().max() for chunk in chunks) == 1
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(3 * latents(3)))


def test_the_frames_of_a_prefix_do_not_depend_on_what_follows(vae: WanVAE):
    whole = vae.decode(latents(4))
    torch.testing.assert_close(vae.decode(latents(4)[:, :, :2]), whole[:, :, :5], rtol=0, atol=1e-6)


def test_the_latents_of_a_prefix_do_not_depend_on_what_follows(vae: WanVAE):
    video = vae.decode(latents(3))
    torch.testing.assert_close(vae.encode(video[:, :, :5]), vae.encode(video)[:, :, :2], rtol=0, atol=1e-6)


def test_interleaved_decodes_are_independent(vae: WanVAE):
    first, second = latents(3, seed=1), latents(3, seed=2)
    pairs = list(zip(vae.decode_chunks(first), vae.decode_chunks(second), strict=True))
    for chunks, alone in zip(zip(*pairs, strict=True), (first, second), strict=True):
        torch.testing.assert_close(torch.cat(chunks, dim=2), vae.decode(alone), rtol=0, atol=1e-6)


def test_clips_of_a_batch_are_independent(vae: WanVAE):
    first, second = latents(2, seed=1), latents(2, seed=2)
    alone = torch.cat((vae.decode(first), vae.decode(second)))
    torch.testing.assert_close(vae.decode(torch.cat((first, second))), alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.encode(alone)[1:], vae.encode(alone[1:]), rtol=0, atol=1e-5)


STILL_LIVES = {
    "one image, then nothing": lambda x: x[:, :, 1:].zero_(),
    "one image, nothing, another": lambda x: x[:, :, 1:-1].zero_(),
    "all frames alike": lambda x: x.copy_(x[:, :, :1].clone().expand_as(x)),
    "a pause between moving parts": lambda x: x[:, :, 9:70].copy_(x[:, :, 9:10].clone().expand(-1, -1, 61, -1, -1)),
}


@pytest.mark.parametrize("still", list(STILL_LIVES))
def test_frames_that_stand_still_are_not_encoded_again_and_the_bits_stay(vae: WanVAE, still: str):
    video = torch.randn(1, 3, 81, 16, 24, generator=torch.Generator().manual_seed(0))
    STILL_LIVES[still](video)
    calls: list[int] = []
    handle = vae.encoder.conv1.register_forward_hook(lambda *_: calls.append(1))
    found = vae.encode(video)
    handle.remove()
    # Chunk by chunk, without what leaves out work: by the encoder's own forward.
    cache, moments = {}, []
    for start in (0, *range(1, 81, 4)):
        chunk = video[:, :, start : start + (4 if start else 1)].contiguous(memory_format=torch.channels_last_3d)
        moments.append(vae.conv1(vae.encoder(chunk, cache), cache))
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    assert torch.equal(found, (torch.cat(moments, dim=2)[:, :16] - mean) / std)
    # Three convolutions at full size remember 6 frames: a chunk of 4 is as the one before from the third equal pair on.
    leaves_out = {"one image, then nothing": 17, "one image, nothing, another": 16, "all frames alike": 17}
    assert len(calls) == 21 - leaves_out.get(still, 12)


@pytest.mark.parametrize(("num_frames", "sound"), [(0, 1), (2, 1), (8, 5), (80, 77)])
def test_frames_beyond_4n_plus_1_are_refused(vae: WanVAE, num_frames: int, sound: int):
    with pytest.raises(RequestError, match=f"cannot encode {num_frames} frames.*use {sound}$"):
        vae.encode(torch.zeros(1, 3, num_frames, 16, 16))


def test_the_way_with_gradients_gives_the_same_frames(vae: WanVAE):
    leaf = latents(2).requires_grad_()
    frames = vae.decode(leaf)
    torch.testing.assert_close(frames.detach(), vae.decode(latents(2)), rtol=0, atol=1e-5)
    frames.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().min() > 0


def test_decoding_a_longer_clip_takes_no_more_memory(vae: WanVAE, one_thread: None):
    short, long = latents(5, height=16, width=24), latents(20, height=16, width=24)
    assert peak_bytes(lambda: consume(vae, long)) < 1.05 * peak_bytes(lambda: consume(vae, short))


def consume(vae: WanVAE, latents_BCTHW: Tensor) -> None:
    for _ in vae.decode_chunks(latents_BCTHW):
        pass


def peak_bytes(run: Callable[[], None]) -> int:
    """Most bytes that `run` held at once, by the CPU allocator's own account."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 20e6, "the account misses the activations"
    return peak
