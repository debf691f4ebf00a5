"""The Wan2.1 denoiser. Letters: B batch, C channels, T H W latent frames, rows, columns, N tokens, D width."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.attention import EPS, CrossAttention, KeysValues, SelfAttention
from wan_ray.model.rope import rotary_table
from wan_ray.variants import DiTArchitecture

TEXT_LENGTH = 512
PATCH = 2  # rows and columns of one token; a token is one latent frame deep

# These decide the residual stream's precision and cost next to nothing: kept in float32 whatever the weights are.
_FLOAT32_PARTS = ("modulation", "norm", "time_embedding", "time_projection", "head")

Context = Sequence[KeysValues]


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward on a float32 residual stream."""

    def __init__(self, architecture: DiTArchitecture) -> None:
        super().__init__()
        dim = architecture.dim
        self.self_attn = SelfAttention(dim, architecture.num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, architecture.num_heads)
        self.ffn = nn.Sequential(
            nn.Linear(dim, architecture.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(architecture.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(self, x_BND: Tensor, time_B6D: Tensor, rotary: Tensor, context: KeysValues) -> Tensor:
        dtype = self.self_attn.q.weight.dtype
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + time_B6D).split(1, dim=1)
        x = x_BND
        x = x + self.self_attn(_modulate(x, shift, scale).to(dtype), rotary) * gate
        x = x + self.cross_attn(self.norm3(x).to(dtype), context)
        return x + self.ffn(_modulate(x, ffn_shift, ffn_scale).to(dtype)) * ffn_gate


class Head(nn.Module):
    """The last norm and projection, in float32."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x_BND: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_BD[:, None]).split(1, dim=1)
        return self.head(_modulate(x_BND, shift, scale))


class DiT(nn.Module):
    """Velocity of noisy latents under a text; parameters named as released (Wan2.1 model.py, 9737cba).

    The caller owns dtype and device; parameters named in _FLOAT32_PARTS must stay float32 (see parameter_dtype).
    """

    def __init__(self, architecture: DiTArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        dim = architecture.dim
        self.patch_embedding = nn.Conv3d(architecture.in_channels, dim, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))
        self.text_embedding = nn.Sequential(
            nn.Linear(architecture.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(architecture.frequency_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_layers))
        self.head = Head(dim, PATCH * PATCH * architecture.out_channels)

    def encode_context(self, context_LD: Tensor) -> Context:
        """Keys and values of every block for one text of at most 512 tokens, [L, text_dim]: once per clip.

        The text is padded with zeros to 512 tokens that are attended to, as the model was trained.
        """
        padded = F.pad(context_LD.to(self.patch_embedding.weight), (0, 0, 0, TEXT_LENGTH - context_LD.shape[0]))
        embedded = self.text_embedding(padded[None])
        return [block.cross_attn.keys_values(embedded) for block in cast(Iterable[Block], self.blocks)]

    def forward(self, latents_BCTHW: Tensor, timestep: int, context: Context) -> Tensor:
        """Velocity, float32, of the shape of the latents; rows and columns must be even."""
        _, _, frames, rows, columns = latents_BCTHW.shape
        grid = (frames, rows // PATCH, columns // PATCH)
        head_dim = self.architecture.dim // self.architecture.num_heads
        rotary = rotary_table(grid, head_dim, latents_BCTHW.device)
        time_BD = self.time_embedding(sinusoid(timestep, self.architecture.frequency_dim, latents_BCTHW.device))
        time_B6D = self.time_projection(time_BD).unflatten(1, (6, -1))
        x = self._embed_patches(latents_BCTHW)
        for block, keys_values in zip(self.blocks, context, strict=True):
            x = block(x, time_B6D, rotary, keys_values)
        return _unpatchify(self.head(x, time_BD), grid)

    def _embed_patches(self, latents_BCTHW: Tensor) -> Tensor:
        """Patches as rows of one matrix product: [B, N, D] in float32."""
        weight = self.patch_embedding.weight
        patches = latents_BCTHW.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))  # B C T h p w q
        rows = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        return F.linear(rows.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias).float()


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a parameter is stored in when the model computes in dtype."""
    return torch.float32 if any(part in name for part in _FLOAT32_PARTS) else dtype


def sinusoid(timestep: int, dim: int, device: torch.device) -> Tensor:
    """Cosines then sines of the timestep at dim / 2 frequencies, float32 [1, dim], computed in float64."""
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim // 2))
    angles = timestep * frequencies
    return torch.cat([angles.cos(), angles.sin()])[None].float()


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale)


def _unpatchify(x_BND: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A token's features are row, column, channel: back to [B, C, T, H, W]."""
    x = x_BND.unflatten(1, grid).unflatten(-1, (PATCH, PATCH, -1))  # B T h w p q C
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
