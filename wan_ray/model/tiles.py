"""Tiles: the parts of a frame that the VAE works on one after the other, each with as much around it as it can see.

Beside attention, which is in the middle of the network at the latents' own scale and is never tiled, the VAE sees no
further than its convolutions reach. So a tile that brings that reach along has the values of the whole frame, to
rounding, and nothing is blended.

Scale: rows or columns of a layer per row or column of latents.
B: clips, C: channels, T: frames of the chunk, H, W: rows and columns at the layer's own scale.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wan_ray.model.vae_layers import Downsample, FeatureCache, ResidualBlock, Upsample


class Reach(NamedTuple):
    """Rows above and below, and columns left and right, that a tile needs beside its own."""

    before: int = 0
    after: int = 0


class Span(NamedTuple):
    """Rows or columns from start until before stop."""

    start: int
    stop: int

    def widened(self, scale: int, reach: Reach, size: int) -> "Span":
        """At another scale and with its reach, but for what lies outside the frame; self and size are of latents."""
        start, stop = self.start * scale - reach.before, self.stop * scale + reach.after
        return Span(max(0, start), min(size * scale, stop))

    def counted_from(self, start: int) -> slice:
        """To index what begins there."""
        return slice(self.start - start, self.stop - start)


class Tile(NamedTuple):
    """A part of a frame."""

    rows: Span
    columns: Span

    def at(self, scale: int, reach: Reach, *, height: int, width: int) -> "Tile":
        """This at another scale and with its reach, in frames of height x width latents."""
        return Tile(self.rows.widened(scale, reach, height), self.columns.widened(scale, reach, width))

    def of(self, frames_BCTHW: Tensor, *, top: int = 0, left: int = 0) -> Tensor:
        """This part of frames that begin at that row and column."""
        return frames_BCTHW[:, :, :, self.rows.counted_from(top), self.columns.counted_from(left)]


def tiles(height: int, width: int, most: int) -> list[Tile]:
    """A frame of height x width latents in as few tiles of at most `most` each way as it takes, about equally large."""
    return [Tile(*pair) for pair in itertools.product(_spans(height, most), _spans(width, most))]


def _spans(size: int, most: int) -> list[Span]:
    count = -(-size // most)
    edges = [size * index // count for index in range(count + 1)]
    return [Span(*pair) for pair in itertools.pairwise(edges)]


def run_in_tiles_(
    layers: Sequence[nn.Module], chunks: Sequence[Tensor], out: Sequence[Tensor], *, first_scale: int, most: int
) -> None:
    """Write into `out` what the layers, of which the first is at that scale, make of a clip's chunks.

    They run on the device of their weights, for one tile of at most `most` latents each way after the other, and see
    all of its chunks in turn. chunks and out are whole frames, and may be in host memory.
    """
    scales = list(itertools.accumulate(layers, _scale_after, initial=first_scale))
    reaches = list(itertools.accumulate(reversed(layers), _reach_before, initial=Reach()))[::-1]
    height, width = (size // first_scale for size in chunks[0].shape[3:])
    for tile in tiles(height, width, most):
        # What each layer must be given, and at the end what the last makes.
        places = [tile.at(*place, height=height, width=width) for place in zip(scales, reaches, strict=True)]
        cache: FeatureCache = {}
        for chunk, made in zip(chunks, out, strict=True):
            places[-1].of(made).copy_(_run(layers, chunk, scales, places, cache))


def _run(
    layers: Sequence[nn.Module], x_BCTHW: Tensor, scales: Sequence[int], places: Sequence[Tile], cache: FeatureCache
) -> Tensor:
    device = next(layers[0].parameters()).device
    x = places[0].of(x_BCTHW).contiguous(memory_format=torch.channels_last_3d).to(device)
    for index, layer in enumerate(layers):
        x = layer(x, cache)
        before, after = scales[index : index + 2]
        top, left = (span.start * after // before for span in places[index])
        x = places[index + 1].of(x, top=top, left=left)
    return x


def _scale_after(scale: int, layer: nn.Module) -> int:
    if isinstance(layer, Upsample):
        return scale * 2
    return scale // 2 if isinstance(layer, Downsample) else scale


def _reach_before(after: Reach, layer: nn.Module) -> Reach:
    """What a layer must be given around what it is to give."""
    before, beyond = after
    if isinstance(layer, Upsample):  # doubles, and then sees a pixel around each
        return Reach(before // 2 + 1, beyond // 2 + 1)
    if isinstance(layer, Downsample):  # sees a pixel right of and below each second one
        return Reach(2 * before, 2 * beyond + 1)
    around = 2 if isinstance(layer, ResidualBlock) else 1
    return Reach(before + around, beyond + around)
