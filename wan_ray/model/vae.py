"""The Wan2.1 causal 3D VAE: video to latents and back, a few frames at a time. Upstream: wan/modules/vae.py.

B: clips, C: channels, F: frames, T: latent frames, H, W: rows and columns (of pixels or of latents). All float32.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from wan_ray.errors import CheckpointError, RequestError
from wan_ray.model.tiles import run_in_tiles_
from wan_ray.model.vae_layers import (
    AttentionBlock,
    CausalConv3d,
    Downsample,
    FeatureCache,
    Head,
    ResidualBlock,
    Upsample,
)

# Mean and standard deviation of each latent channel over the training videos. Upstream: wan/modules/vae.py:629-636.
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True, kw_only=True)
class VAEArchitecture:
    """Sizes of the network; levels are counted from pixels to latents."""

    base_dim: int
    num_res_blocks: int
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent, each way."""
        return 2 ** len(self.temporal_downsample)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> "VAEArchitecture":
        """Read off a checkpoint's released tensor names and shapes; CheckpointError if they are not of this family.

        Whether every tensor is there is left to the loading.
        """
        try:
            base_dim = shapes["encoder.conv1.weight"][0]
            z_dim = shapes["conv2.weight"][0]
        except KeyError as error:
            raise CheckpointError(
                f"the VAE checkpoint has no tensor {error.args[0]!r}; give Wan2.1's VAE with its released names"
            ) from None
        level_dims, level_blocks, temporal_downsample = [base_dim], [0], []
        for index in itertools.count():
            layer = f"encoder.downsamples.{index}"
            if (weight_shape := shapes.get(f"{layer}.residual.6.weight")) is not None:
                level_dims[-1] = weight_shape[0]
                level_blocks[-1] += 1
            elif f"{layer}.resample.1.weight" in shapes:
                temporal_downsample.append(f"{layer}.time_conv.weight" in shapes)
                level_dims.append(level_dims[-1])
                level_blocks.append(0)
            else:
                break
        sound = len(set(level_blocks)) == 1 and level_blocks[0] > 0 and all(dim % base_dim == 0 for dim in level_dims)
        if not sound or z_dim != len(LATENTS_MEAN):
            raise CheckpointError(
                f"the VAE checkpoint has {level_blocks} residual blocks of {level_dims} channels per level and {z_dim} "
                f"latent channels; Wan2.1's has as many blocks in every level, channels in multiples of {base_dim}, "
                f"and {len(LATENTS_MEAN)} latent channels"
            )
        return cls(
            base_dim=base_dim,
            num_res_blocks=level_blocks[0],
            z_dim=z_dim,
            dim_mult=tuple(dim // base_dim for dim in level_dims),
            temporal_downsample=tuple(temporal_downsample),
        )


class Encoder3d(nn.Module):
    """Frames to the mean and log variance of latents, chunk by chunk."""

    def __init__(self, architecture: VAEArchitecture) -> None:
        super().__init__()
        dims = [architecture.base_dim * mult for mult in (1, *architecture.dim_mult)]
        self.conv1 = CausalConv3d(3, dims[0])
        self.downsamples = nn.ModuleList()
        for level, (in_dim, out_dim) in enumerate(itertools.pairwise(dims)):
            for block in range(architecture.num_res_blocks):
                self.downsamples.append(ResidualBlock(in_dim if block == 0 else out_dim, out_dim))
            if level < len(architecture.temporal_downsample):
                self.downsamples.append(Downsample(out_dim, temporal=architecture.temporal_downsample[level]))
        self.middle = _middle(dims[-1])
        self.head = Head(dims[-1], 2 * architecture.z_dim)

    def forward(self, video_BCFHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, 2 * z_dim, 1, H / 8, W / 8] from the clip's first frame or its next four."""
        x = video_BCFHW
        for layer in self.layers_from_pixels():
            x = layer(x, cache)
        return self.finish(x, cache)

    def layers_from_pixels(self) -> list[nn.Module]:
        """Those that see no further than their convolutions: until frames have the latents' scale."""
        last = max(index for index, layer in enumerate(self.downsamples) if isinstance(layer, Downsample))
        return [self.conv1, *self.downsamples[: last + 1]]

    def levels(self) -> "list[_Level]":
        """All of it for one clip, cut where frames change their scale."""
        layers, levels = self.layers_from_pixels(), []
        first = 0
        for index, layer in enumerate(layers):
            if isinstance(layer, Downsample):
                levels.append(_Level(layers[first : index + 1]))
                first = index + 1
        rest = [*self.downsamples[len(layers) - 1 :], *self.middle, self.head]
        return [*levels, _Level(rest, run=self.finish)]

    def finish(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """The rest, which is to see whole frames."""
        for layer in self.downsamples[len(self.layers_from_pixels()) - 1 :]:
            x_BCTHW = layer(x_BCTHW, cache)
        return self.head(_apply_middle(self.middle, x_BCTHW, cache), cache)


class _Level:
    """Layers of one scale, at work on one clip. Once their input has stood still for as long as they remember, they
    give what they gave before, to the bit, and what they remember stays as it is."""

    def __init__(
        self, layers: Sequence[nn.Module], *, run: Callable[[Tensor, FeatureCache], Tensor] | None = None
    ) -> None:
        convolutions = [m for layer in layers for m in layer.modules() if isinstance(m, CausalConv3d)]
        self._num_past_frames = sum(conv.num_past_frames for conv in convolutions)
        self._run = run or (lambda x, cache: reduce(lambda x, layer: layer(x, cache), layers, x))
        self._num_same = 0
        self._output = torch.empty(0)

    def __call__(self, x_BCTHW: Tensor, is_same: bool, cache: FeatureCache) -> tuple[Tensor, bool]:
        """Of the clip's next chunk: the output, and whether it is the chunk's before. is_same: of the input."""
        self._num_same = self._num_same + 1 if is_same else 0
        # The chunk before this one saw as far back: so far, and one chunk more, all must have been the same.
        if self._num_same > -(-self._num_past_frames // x_BCTHW.shape[2]):
            return self._output, True
        self._output = self._run(x_BCTHW, cache)
        return self._output, False


class Decoder3d(nn.Module):
    """Latent frames to frames, one at a time."""

    def __init__(self, architecture: VAEArchitecture) -> None:
        super().__init__()
        mults = architecture.dim_mult[::-1]
        dims = [architecture.base_dim * mult for mult in (mults[0], *mults)]
        temporal_upsample = architecture.temporal_downsample[::-1]
        self.conv1 = CausalConv3d(architecture.z_dim, dims[0])
        self.middle = _middle(dims[0])
        self.upsamples = nn.ModuleList()
        for level, (previous_dim, out_dim) in enumerate(itertools.pairwise(dims)):
            in_dim = previous_dim if level == 0 else previous_dim // 2
            for block in range(architecture.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(in_dim if block == 0 else out_dim, out_dim))
            if level < len(temporal_upsample):
                self.upsamples.append(Upsample(out_dim, temporal=temporal_upsample[level]))
        self.head = Head(dims[-1], 3)

    def forward(self, latents_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, 3, 1 or 4, 8 * H, 8 * W] from one latent frame: one frame from the clip's first, then four from each."""
        x = self.begin(latents_BCTHW, cache)
        for layer in self.layers_to_pixels():
            x = layer(x, cache)
        return x

    def begin(self, latents_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """What is to see whole frames, and all else at the latents' scale."""
        x = _apply_middle(self.middle, self.conv1(latents_BCTHW, cache), cache)
        for layer in self.upsamples[: self._first_upsample]:
            x = layer(x, cache)
        return x

    def layers_to_pixels(self) -> list[nn.Module]:
        """The rest, which sees no further than its convolutions."""
        return [*self.upsamples[self._first_upsample :], self.head]

    @property
    def _first_upsample(self) -> int:
        return next(index for index, layer in enumerate(self.upsamples) if isinstance(layer, Upsample))


class WanVAE(nn.Module):
    """Encodes and decodes whole clips; parameter names are the released ones.

    Made without gradients, since it is never trained here: a decode outside torch.no_grad keeps no graph.
    """

    def __init__(self, architecture: VAEArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder3d(architecture)
        self.conv1 = CausalConv3d(2 * architecture.z_dim, 2 * architecture.z_dim, kernel_size=(1, 1, 1))
        self.conv2 = CausalConv3d(architecture.z_dim, architecture.z_dim, kernel_size=(1, 1, 1))
        self.decoder = Decoder3d(architecture)
        self.requires_grad_(False)

    def encode(self, video_BCFHW: Tensor, *, tile: int | None = None) -> Tensor:
        """Latents [B, 16, T, H / 8, W / 8] of frames in [-1, 1]: the mean, scaled as the DiT expects it.

        With a tile, features of only so many latents each way are held at a time. RequestError unless the frames are
        4n+1; upstream would drop the rest.
        """
        batch_size, _, num_frames, height, width = video_BCFHW.shape
        stride, scale = self.architecture.temporal_stride, self.architecture.spatial_stride
        if num_frames < 1 or (num_frames - 1) % stride != 0:
            sound = max(num_frames - 1, 0) // stride * stride + 1
            raise RequestError(f"cannot encode {num_frames} frames; the VAE takes {stride}n+1: use {sound}")
        num_latent_frames = (num_frames - 1) // stride + 1
        latents_BCTHW = video_BCFHW.new_empty(
            batch_size, self.architecture.z_dim, num_latent_frames, height // scale, width // scale
        )
        mean, std = _latent_statistics(latents_BCTHW)
        cache: FeatureCache = {}
        chunks = [
            video_BCFHW[:, :, max(0, stride * (index - 1) + 1) : stride * index + 1]
            for index in range(num_latent_frames)
        ]
        all_moments = self._encode_whole(chunks, cache) if tile is None else self._encode_tiles(chunks, tile, cache)
        for index, x in enumerate(all_moments):
            moments = self.conv1(x, cache)
            latents_BCTHW[:, :, index : index + 1] = (moments[:, : self.architecture.z_dim] - mean) / std
        return latents_BCTHW

    def _encode_whole(self, chunks: Sequence[Tensor], cache: FeatureCache) -> Iterator[Tensor]:
        """As the encoder. What stands still is not computed again: I2V's frames are one image, and then nothing."""
        levels = self.encoder.levels()
        for before, chunk in zip((None, *chunks), chunks, strict=False):
            x, is_same = _channels_last(chunk), before is not None and torch.equal(before, chunk)
            for level in levels:
                x, is_same = level(x, is_same, cache)
            yield x

    def _encode_tiles(self, chunks: Sequence[Tensor], tile: int, cache: FeatureCache) -> Iterator[Tensor]:
        """As the encoder: features at the latents' scale of one tile after the other, and then the rest."""
        first, layers, scale = chunks[0], self.encoder.layers_from_pixels(), self.architecture.spatial_stride
        dim = self.architecture.base_dim * self.architecture.dim_mult[-2]
        height, width = (size // scale for size in first.shape[3:])
        features = [torch.empty(len(first), dim, 1, height, width) for _ in chunks]
        run_in_tiles_(layers, chunks, features, first_scale=scale, most=tile)
        return (self.encoder.finish(_channels_last(x.to(first.device)), cache) for x in features)

    def decode_chunks(self, latents_BCTHW: Tensor, *, tile: int | None = None) -> Iterator[Tensor]:
        """Frames in [-1, 1], first [B, 3, 1, 8 * H, 8 * W], then [B, 3, 4, ...] per latent frame.

        Holds two frames of features per layer between chunks, however long the clip is. With a tile, only of so many
        latents each way; then frames come on the CPU, which holds all of the clip's before the first one comes.
        """
        if tile is not None:
            yield from self._decode_tiles(latents_BCTHW, tile)
            return
        cache: FeatureCache = {}
        for x in self._unscaled(latents_BCTHW):
            yield self.decoder(self.conv2(x, cache), cache).clamp_(-1, 1)

    def _unscaled(self, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """Latents as the decoder takes them, frame by frame."""
        mean, std = _latent_statistics(latents_BCTHW)
        return (_channels_last(latent_BCTHW * std + mean) for latent_BCTHW in latents_BCTHW.split(1, dim=2))

    def _decode_tiles(self, latents_BCTHW: Tensor, tile: int) -> Iterator[Tensor]:
        """Features at the latents' scale of the whole clip, then all frames of one tile after the other."""
        cache: FeatureCache = {}
        features = [
            _in_host_memory(self.decoder.begin(self.conv2(x, cache), cache)) for x in self._unscaled(latents_BCTHW)
        ]
        cache.clear()
        batch_size, _, num_latent_frames, height, width = latents_BCTHW.shape
        stride, scale = self.architecture.temporal_stride, self.architecture.spatial_stride
        chunks = [
            torch.empty(batch_size, 3, 1 if index == 0 else stride, height * scale, width * scale)
            for index in range(num_latent_frames)
        ]
        run_in_tiles_(self.decoder.layers_to_pixels(), features, chunks, first_scale=1, most=tile)
        return (chunk.clamp_(-1, 1) for chunk in chunks)

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """The whole clip [B, 3, F, 8 * H, 8 * W], frames in [-1, 1]."""
        batch_size, _, num_latent_frames, height, width = latents_BCTHW.shape
        stride, scale = self.architecture.temporal_stride, self.architecture.spatial_stride
        num_frames = (num_latent_frames - 1) * stride + 1
        video_BCFHW = latents_BCTHW.new_empty(batch_size, 3, num_frames, height * scale, width * scale)
        start = 0
        for chunk in self.decode_chunks(latents_BCTHW):
            video_BCFHW[:, :, start : start + chunk.shape[2]] = chunk
            start += chunk.shape[2]
        return video_BCFHW


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def _apply_middle(middle: nn.ModuleList, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
    first, attention, last = middle
    return last(attention(first(x_BCTHW, cache)), cache)


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    """Channels last in memory: in this layout convolutions and norms are fastest, and every layer keeps it."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)


def _latent_statistics(latents_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each [16, 1, 1, 1]; no buffers, whose names the checkpoint lacks."""
    mean, std = (latents_BCTHW.new_tensor(values).view(-1, 1, 1, 1) for values in (LATENTS_MEAN, LATENTS_STD))
    return mean, std


def _in_host_memory(x_BCTHW: Tensor) -> Tensor:
    return torch.empty(x_BCTHW.shape).copy_(x_BCTHW)
