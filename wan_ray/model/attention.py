"""Self- and cross-attention of a DiT block. Letters: B batch, N tokens, L text tokens, H heads, D head width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.rope import rotate

EPS = 1e-6
KeysValues = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, all heads together, computed in float32; float32 weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, EPS).to(x.dtype)


class Attention(nn.Module):
    """The projections both kinds share; parameter names as released."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def heads(self, x: Tensor) -> Tensor:
        """[B, N, H * D] to [B, N, H, D]."""
        return x.unflatten(-1, (self.num_heads, -1))

    def join(self, q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        """Attention over all keys, heads joined and projected: [B, N, H * D]."""
        attended = F.scaled_dot_product_attention(
            q_BNHD.transpose(1, 2), k_BLHD.transpose(1, 2), v_BLHD.transpose(1, 2)
        )
        return self.o(attended.transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    """Every video token attends to every other; queries and keys carry their position."""

    def forward(self, x_BND: Tensor, rotary: Tensor) -> Tensor:
        q = rotate(self.heads(self.norm_q(self.q(x_BND))), rotary)
        k = rotate(self.heads(self.norm_k(self.k(x_BND))), rotary)
        return self.join(q, k, self.heads(self.v(x_BND)))


class CrossAttention(Attention):
    """Video tokens attend to the text, whose keys and values are the same at every step."""

    def keys_values(self, context_BLD: Tensor) -> KeysValues:
        """Computed once per clip, not once per step."""
        return self.heads(self.norm_k(self.k(context_BLD))), self.heads(self.v(context_BLD))

    def forward(self, x_BND: Tensor, context: KeysValues) -> Tensor:
        return self.join(self.heads(self.norm_q(self.q(x_BND))), *context)
