"""Tiles have the values of whole frames, from as little around them as will do."""

import pytest
import torch
from torch import Tensor

from wan_ray.model import tiles as tiles_module
from wan_ray.model.debug import random_tensor
from wan_ray.model.tiles import Reach, tiles
from wan_ray.model.vae import VAEArchitecture, WanVAE

SIZES = [(9, 17, 8), (12, 5, 16), (6, 5, 3)]


@pytest.fixture(scope="module", params=[1, 2])
def vae(request: pytest.FixtureRequest) -> WanVAE:
    model = WanVAE(VAEArchitecture(base_dim=8, num_res_blocks=request.param))
    model.load_state_dict({k: random_tensor("vae", k, tuple(v.shape), 0) for k, v in model.state_dict().items()})
    return model


def latents(height: int, width: int) -> Tensor:
    return torch.randn(1, 16, 3, height, width, generator=torch.Generator().manual_seed(0))


def farthest(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return (found - wanted).abs().max().item()


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
def test_frames_decoded_in_tiles_are_those_decoded_whole(vae: WanVAE, height: int, width: int, tile: int) -> None:
    z = latents(height, width)
    chunks = list(vae.decode_chunks(z, tile=tile))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert farthest(torch.cat(chunks, dim=2), vae.decode(z)) < 5e-6


@pytest.mark.parametrize(("height", "width", "tile"), SIZES)
def test_latents_encoded_in_tiles_are_those_encoded_whole(vae: WanVAE, height: int, width: int, tile: int) -> None:
    video = torch.rand(1, 3, 9, 8 * height, 8 * width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert farthest(vae.encode(video, tile=tile), vae.encode(video)) < 5e-6


def test_a_tile_takes_no_more_along_than_it_sees(vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pixel less on a side the seams show."""
    z, right = latents(12, 12), tiles_module._reach_before
    whole = vae.decode(z)
    video = whole.clone()
    encoded = vae.encode(video)
    for less in (Reach(1, 0), Reach(0, 1)):

        def short(after: Reach, layer: torch.nn.Module, less: Reach = less) -> Reach:
            before, beyond = right(after, layer)
            at_end = after == Reach()
            return Reach(before - less.before * at_end, beyond - less.after * at_end)

        monkeypatch.setattr(tiles_module, "_reach_before", short)
        assert farthest(torch.cat(list(vae.decode_chunks(z, tile=6)), dim=2), whole) > 1e-3
        if less == Reach(0, 1):
            assert farthest(vae.encode(video, tile=6), encoded) > 1e-3


@pytest.mark.parametrize(("height", "width", "most", "count"), [(60, 104, 32, 8), (90, 160, 16, 60), (5, 5, 8, 1)])
def test_tiles_cover_a_frame_once_and_are_about_equally_large(height: int, width: int, most: int, count: int) -> None:
    seen = torch.zeros(1, 1, 1, height, width)
    parts = tiles(height, width, most)
    for part in parts:
        part.of(seen).add_(1)
    assert (len(parts), seen.unique().tolist()) == (count, [1])
    for spans in ({part.rows for part in parts}, {part.columns for part in parts}):
        sizes = [span.stop - span.start for span in spans]
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1
