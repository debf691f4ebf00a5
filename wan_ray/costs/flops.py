"""Floating-point operations of every model, a multiply-add counting as two; bytes that element-wise kernels move.

Counted as torch.utils.flop_counter does, which the tests hold them to: matrix products, convolutions and attention.
"""

import itertools
from dataclasses import dataclass

from wan_ray.costs.bucket import Bucket
from wan_ray.variants import DiTArchitecture

TEXT_TOKENS = 512
CLIP_TOKENS = 257
_CLIP_WIDTH = 1280
_CLIP_PATCH = 14


@dataclass(frozen=True, kw_only=True)
class VAESizes:
    """Of the released VAE; a debug checkpoint's has base_dim 8 and one residual block."""

    base_dim: int = 96
    num_res_blocks: int = 2
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)


@dataclass(frozen=True, kw_only=True)
class TextEncoderSizes:
    """Of umT5-xxl's encoder."""

    vocab_size: int = 256384
    dim: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    ffn_dim: int = 10240


@dataclass(frozen=True, kw_only=True)
class ImageEncoderSizes:
    """Of CLIP ViT-H/14's visual tower without its last block."""

    dim: int = _CLIP_WIDTH
    ffn_dim: int = 5120
    num_layers: int = 31


@dataclass(frozen=True, kw_only=True)
class PassWork:
    """One forward pass of the DiT: FLOPs of its products and of its attention, and bytes of its other kernels."""

    linear: float
    attention: float
    moved_bytes: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.linear + self.attention


def num_blocks(architecture: DiTArchitecture) -> int:
    """With VACE's second stream."""
    return architecture.num_layers + len(architecture.vace_layers)


def dit_pass(architecture: DiTArchitecture, num_tokens: int) -> PassWork:
    """One pass on one clip, whose text and image keys and values are at hand."""
    n, d, blocks = num_tokens, architecture.dim, num_blocks(architecture)
    block = dit_block(architecture, n)
    linear = blocks * block.linear
    linear += 2 * n * d * 4 * (architecture.in_channels + architecture.out_channels)
    linear += 2 * d * (architecture.frequency_dim + 7 * d)  # the time step
    if architecture.vace_layers:
        linear += (len(architecture.vace_layers) + 1) * 2 * n * d * d
    return PassWork(
        linear=linear,
        attention=blocks * block.attention,
        moved_bytes=blocks * block.moved_bytes + n * d * len(architecture.vace_layers) * 30,
    )


def dit_block(architecture: DiTArchitecture, num_tokens: int) -> PassWork:
    """One block's part of a pass.

    Its bytes are read and written by casts, norms, rotations, gates and sums of an eager pass in bfloat16, residuals in
    float32. Per token and channel: casts 78, products 28, sums 34, layer norms 24, shift and scale 16, RMS norms 24,
    the activation 4 per hidden feature, the sum of two attentions 6; of a hint, which is not counted here: 8 + 14.
    """
    n, d, context = num_tokens, architecture.dim, TEXT_TOKENS + architecture.image_tokens
    per_channel = 78 + 28 + 34 + 24 + 16 + 24 + 4 * architecture.ffn_dim / d + (6 if architecture.image_tokens else 0)
    return PassWork(
        linear=12 * n * d * d + 4 * n * d * architecture.ffn_dim,
        attention=4 * n * n * d + 4 * n * context * d,
        moved_bytes=n * d * per_channel,
    )


def dit_context(architecture: DiTArchitecture, num_tokens: int) -> float:
    """FLOPs that prepare one text's keys and values, an image's and a control's tokens: once per clip and text."""
    d, context = architecture.dim, TEXT_TOKENS + architecture.image_tokens
    text = 2 * TEXT_TOKENS * (architecture.text_dim * d + d * d)
    image = 2 * architecture.image_tokens * (_CLIP_WIDTH * _CLIP_WIDTH + _CLIP_WIDTH * d)
    control = 2 * num_tokens * 4 * architecture.vace_in_channels * d if architecture.vace_layers else 0
    return text + image + control + num_blocks(architecture) * 4 * context * d * d


def denoise_flops(architecture: DiTArchitecture, bucket: Bucket) -> float:
    """Of a whole clip."""
    passes = bucket.num_passes * dit_pass(architecture, bucket.num_tokens).flops
    return passes + bucket.num_texts * dit_context(architecture, bucket.num_tokens)


def text_encoder_flops(num_tokens: int = TEXT_TOKENS, sizes: TextEncoderSizes | None = None) -> float:
    """One prompt of so many tokens; prompts are not padded."""
    s = sizes or TextEncoderSizes()
    inner = s.num_heads * s.head_dim
    per_layer = 2 * num_tokens * (4 * s.dim * inner + 3 * s.dim * s.ffn_dim) + 4 * num_tokens**2 * inner
    return s.num_layers * per_layer


def image_encoder_flops(sizes: ImageEncoderSizes | None = None) -> float:
    """One image."""
    s = sizes or ImageEncoderSizes()
    patches = 2 * 3 * _CLIP_PATCH**2 * s.dim * (CLIP_TOKENS - 1)
    block = 2 * CLIP_TOKENS * s.dim * (4 * s.dim + 2 * s.ffn_dim) + 4 * CLIP_TOKENS**2 * s.dim
    return patches + s.num_layers * block


def vae_decode_flops(width: int, height: int, num_frames: int, sizes: VAESizes | None = None) -> float:
    """A clip of pixels from its latents, latent frame by latent frame; the first becomes one frame, each other four."""
    s = sizes or VAESizes()
    later = (num_frames - 1) // 4
    return _decode_chunk(s, width, height, first=True) + later * _decode_chunk(s, width, height, first=False)


def vae_encode_flops(width: int, height: int, num_frames: int, sizes: VAESizes | None = None) -> float:
    """Latents of a clip, the first frame alone and then four at a time."""
    s = sizes or VAESizes()
    later = (num_frames - 1) // 4
    return _encode_chunk(s, width, height, first=True) + later * _encode_chunk(s, width, height, first=False)


def _decode_chunk(s: VAESizes, width: int, height: int, *, first: bool) -> float:
    dims = [s.base_dim * mult for mult in (s.dim_mult[-1], *reversed(s.dim_mult))]
    doubles = s.temporal_downsample[::-1]
    taps = 1 if first else 3  # in time: before the first frame there is nothing but zeros
    scale = 2 ** len(doubles)
    area, frames = width // scale * (height // scale), 1
    flops = 2 * s.z_dim * s.z_dim * area + _conv(s.z_dim, dims[0], 9 * taps, area) + _middle(dims[0], area, taps)
    for level, (previous, dim) in enumerate(itertools.pairwise(dims)):
        in_dim = previous if level == 0 else previous // 2
        flops += _residual(in_dim, dim, frames * area, taps) + s.num_res_blocks * _residual(
            dim, dim, frames * area, taps
        )
        if level < len(doubles):
            if doubles[level] and not first:
                flops += _conv(dim, 2 * dim, 3, frames * area)
                frames *= 2
            area *= 4
            flops += _conv(dim, dim // 2, 9, frames * area)
    return flops + _conv(dims[-1], 3, 9 * taps, frames * area)


def _encode_chunk(s: VAESizes, width: int, height: int, *, first: bool) -> float:
    dims = [s.base_dim * mult for mult in (1, *s.dim_mult)]
    taps = 1 if first else 3
    area, frames = width * height, 1 if first else 2 ** sum(s.temporal_downsample)
    flops = _conv(3, dims[0], 9 * taps, frames * area)
    for level, (in_dim, dim) in enumerate(itertools.pairwise(dims)):
        flops += _residual(in_dim, dim, frames * area, taps)
        flops += (s.num_res_blocks - 1) * _residual(dim, dim, frames * area, taps)
        if level < len(s.temporal_downsample):
            area //= 4
            flops += _conv(dim, dim, 9, frames * area)
            if s.temporal_downsample[level] and not first:
                frames //= 2
                flops += _conv(dim, dim, 3, frames * area)
    moments = 2 * s.z_dim
    return flops + _middle(dims[-1], area, taps) + _conv(dims[-1], moments, 9 * taps, area) + 2 * moments**2 * area


def _conv(in_dim: int, out_dim: int, taps: int, outputs: int) -> float:
    return 2 * in_dim * out_dim * taps * outputs


def _residual(in_dim: int, out_dim: int, outputs: int, taps: int) -> float:
    shortcut = _conv(in_dim, out_dim, 1, outputs) if in_dim != out_dim else 0
    return _conv(in_dim, out_dim, 9 * taps, outputs) + _conv(out_dim, out_dim, 9 * taps, outputs) + shortcut


def _middle(dim: int, area: int, taps: int) -> float:
    """Two residual blocks around attention inside one frame."""
    return 2 * _residual(dim, dim, area, taps) + 8 * dim * dim * area + 4 * area**2 * dim
