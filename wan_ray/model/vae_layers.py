"""Layers of the Wan2.1 VAE: convolutions causal in time, and the blocks made of them. Upstream: wan/modules/vae.py.

Clips come in chunks of frames, the first chunk being one frame, with channels last in memory (channels_last_3d).
B: clips, C: channels, T: frames of the chunk, H, W: rows and columns at the layer's own scale, L: H * W tokens.
"""

from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What each causal layer remembers of the chunks before: its last input frames [B, C, n, H, W]. Whoever starts an
# encode or a decode makes an empty one and passes it with every chunk; modules hold no state of their own.
FeatureCache: TypeAlias = dict[nn.Module, Tensor]


def conv3d(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, *, stride: list[int], padding: list[int]) -> Tensor:
    """Same as torch's conv3d, several times faster on a CPU for one small clip."""
    on_cpu = x_BCTHW.device.type == "cpu" and x_BCTHW.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    needs_grad = torch.is_grad_enabled() and (x_BCTHW.requires_grad or weight.requires_grad)
    if on_cpu and not needs_grad:
        # torch sends a batch of one with C * T * H <= 20480 to slow_conv3d, five times slower than oneDNN on the same
        # convolution. Naming oneDNN avoids that rule; this can go when torch drops it (2.13 has it).
        return torch.ops.aten.mkldnn_convolution(x_BCTHW, weight, bias, padding, stride, [1, 1, 1], 1)
    return F.conv3d(x_BCTHW, weight, bias, stride=stride, padding=padding)


class CausalConv3d(nn.Conv3d):
    """Convolution over this chunk and the frames before it; height and width stay as they are."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        time_stride: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.num_past_frames = kernel_size[0] - time_stride
        self.chunk_stride = [time_stride, 1, 1]
        self.chunk_padding = [0, kernel_size[1] // 2, kernel_size[2] // 2]

    def forward(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:  # pyrefly: ignore[bad-override]
        """Frames [B, out_channels, T / time_stride, H, W]; leaves the frames that the next chunk needs in `cache`."""
        weight = self.weight
        if self.num_past_frames > 0:
            past = cache.get(self)
            if past is None:
                # Nothing comes before the first frame: of the taps in time only the last meets more than zeros.
                cache[self] = torch.cat((torch.zeros_like(x_BCTHW), x_BCTHW), dim=2)
                weight = weight[:, :, -1:]
            else:
                x_BCTHW = torch.cat((past, x_BCTHW), dim=2)
                # A copy, since a view would keep the whole buffer alive until the next chunk.
                cache[self] = x_BCTHW[:, :, -self.num_past_frames :].clone(memory_format=torch.channels_last_3d)
        return conv3d(x_BCTHW, weight, self.bias, stride=self.chunk_stride, padding=self.chunk_padding)


class RMSNorm(nn.Module):
    """Channels scaled to root mean square 1, then by gamma; gamma is [dim, 1, ...] as released."""

    def __init__(self, dim: int, *, num_trailing_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * num_trailing_dims))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Same shape as `x_BCTHW`."""
        # The released F.normalize(x) * sqrt(C) with one pass less. Its norm is fast only with channels last: over a
        # strided dim it is a third of a CPU decode.
        length_B1THW = torch.linalg.vector_norm(x_BCTHW, dim=1, keepdim=True).clamp_min(1e-12)
        return (x_BCTHW * (x_BCTHW.shape[1] ** 0.5 / length_B1THW)).mul_(self.gamma.view(-1, 1, 1, 1))


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolution layers and a shortcut; numbered as in the released nn.Sequential."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": RMSNorm(in_channels, num_trailing_dims=3),
                "2": CausalConv3d(in_channels, out_channels),
                "3": RMSNorm(out_channels, num_trailing_dims=3),
                "6": CausalConv3d(out_channels, out_channels),
            }
        )
        self.shortcut = (
            CausalConv3d(in_channels, out_channels, kernel_size=(1, 1, 1)) if in_channels != out_channels else None
        )

    def forward(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, out_channels, T, H, W]."""
        h = self.residual["2"](F.silu(self.residual["0"](x_BCTHW), inplace=True), cache)
        h = self.residual["6"](F.silu(self.residual["3"](h), inplace=True), cache)
        return h.add_(x_BCTHW if self.shortcut is None else self.shortcut(x_BCTHW, cache))


class Head(nn.ModuleDict):
    """Norm, SiLU and the last convolution; numbered as in the released nn.Sequential."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__({"0": RMSNorm(in_channels, num_trailing_dims=3), "2": CausalConv3d(in_channels, out_channels)})

    def forward(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, out_channels, T, H, W]."""
        return self["2"](F.silu(self["0"](x_BCTHW), inplace=True), cache)


class AttentionBlock(nn.Module):
    """Self-attention inside each frame, one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, num_trailing_dims=2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Same shape as `x_BCTHW`."""
        height, width = x_BCTHW.shape[3:]
        # The released 1x1 convolutions, as products over tokens: with channels last these are views.
        tokens_BTLC = self.norm(x_BCTHW).flatten(3).permute(0, 2, 3, 1)
        q, k, v = F.linear(tokens_BTLC, self.to_qkv.weight.flatten(1), self.to_qkv.bias).chunk(3, dim=-1)
        attended_BTLC = F.scaled_dot_product_attention(q, k, v)
        projected_BTLC = F.linear(attended_BTLC, self.proj.weight.flatten(1), self.proj.bias)
        return x_BCTHW + projected_BTLC.permute(0, 3, 1, 2).unflatten(3, (height, width))


class Downsample(nn.Module):
    """Halves height and width; with `temporal` also the frames of every chunk but the first."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim, 3)})
        self.time_conv = CausalConv3d(dim, dim, kernel_size=(3, 1, 1), time_stride=2) if temporal else None

    def forward(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, C, T or T / 2, H / 2, W / 2]."""
        conv = cast(nn.Conv2d, self.resample["1"])
        # The released padding is on the right and bottom only, which no padding argument can say.
        padded_BCTHW = F.pad(x_BCTHW, (0, 1, 0, 1))
        x_BCTHW = conv3d(padded_BCTHW, conv.weight.unsqueeze(2), conv.bias, stride=[1, 2, 2], padding=[0, 0, 0])
        if self.time_conv is None:
            return x_BCTHW
        if self.time_conv not in cache:
            cache[self.time_conv] = x_BCTHW
            return x_BCTHW
        return self.time_conv(x_BCTHW, cache)


class Upsample(nn.Module):
    """Doubles height and width, halves channels; with `temporal` doubles the frames of every chunk but the first."""

    def __init__(self, dim: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(dim, dim // 2, 3)})
        self.time_conv = CausalConv3d(dim, dim * 2, kernel_size=(3, 1, 1)) if temporal else None

    def forward(self, x_BCTHW: Tensor, cache: FeatureCache) -> Tensor:
        """[B, C / 2, T or 2 * T, 2 * H, 2 * W]."""
        frames = (x_BCTHW,)
        if self.time_conv is not None:
            if self.time_conv in cache:
                # Half of the channels are the even frames, half the odd ones.
                frames = self.time_conv(x_BCTHW, cache).chunk(2, dim=1)
            else:
                # The first frame skips this layer, so the next ones see zeros in its place.
                cache[self.time_conv] = torch.cat([torch.zeros_like(x_BCTHW)] * 2, dim=2)
        conv = cast(nn.Conv2d, self.resample["1"])
        return conv3d(
            _interleaved_and_doubled(frames), conv.weight.unsqueeze(2), conv.bias, stride=[1, 1, 1], padding=[0, 1, 1]
        )


def _interleaved_and_doubled(parts_BCTHW: tuple[Tensor, ...]) -> Tensor:
    """[B, C, n * T, 2 * H, 2 * W]: a frame of each of the n parts in turn, every pixel as four.

    Written once, into channels-last memory: F.interpolate over frames loses that layout for a chunk of one frame.
    """
    num_parts, first = len(parts_BCTHW), parts_BCTHW[0]
    B, C, T, H, W = first.shape
    out = torch.empty(
        (B, C, num_parts * T, 2 * H, 2 * W),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last_3d,
    )
    out_BCTHrWs = out.unflatten(4, (W, 2)).unflatten(3, (H, 2))
    for index, part_BCTHW in enumerate(parts_BCTHW):
        out_BCTHrWs[:, :, index::num_parts] = part_BCTHW[:, :, :, :, None, :, None]
    return out
