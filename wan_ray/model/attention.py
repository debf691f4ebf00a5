"""Self- and cross-attention of a DiT block. Letters: B batch, N tokens, L text tokens, H heads, D head width."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.attention_kernels import attend_by_best
from wan_ray.model.fused import rms_norm, rms_norm_rotate

# Rows of a linear layer from which on a row's result does not depend on how many there are: for fewer, Intel's
# library on CPUs takes other kernels, which round otherwise. Measured with 1 to 600 rows on one thread, torch 2.13.
FEWEST_ROWS = 16
KeysValues = tuple[Tensor, Tensor]
Sources = tuple[KeysValues, ...]


class Layout(Protocol):
    """Where one clip's video tokens lie: all of them here, or a part of them on each of several devices."""

    def shard(self, tokens: Tensor, *, dim: int) -> Tensor:
        """What this device holds of all tokens."""
        ...

    def gather(self, x_BND: Tensor) -> Tensor:
        """All tokens, from what each device holds."""
        ...

    def attend(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        """Attention of the tokens held here over all of the clip's, [B, N, H, D]."""
        ...

    def token_mean(self, values_BN: Tensor) -> Tensor:
        """Mean over all of the clip's tokens of one value each."""
        ...


class Whole:
    """All tokens lie here."""

    def shard(self, tokens: Tensor, *, dim: int) -> Tensor:
        return tokens

    def gather(self, x_BND: Tensor) -> Tensor:
        return x_BND

    def attend(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        return attend(q_BNHD, k_BNHD, v_BNHD)

    def token_mean(self, values_BN: Tensor) -> Tensor:
        return values_BN.mean()


WHOLE = Whole()


def attend(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """Attention over all keys, [B, N, H, D]."""
    if q_BNHD.is_cuda:
        return attend_by_best(q_BNHD, k_BLHD, v_BLHD)
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BLHD, v_BLHD))
    if q.device.type == "cpu":
        # The CPU takes queries by 32, and those left over as a product of fewer rows, which may round otherwise.
        q = F.pad(q, (0, 0, 0, -q.shape[2] % 32))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)[:, : q_BNHD.shape[1]]


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width, all heads together, computed in float32; float32 weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


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


class SelfAttention(Attention):
    """Every video token attends to every other; queries and keys carry their position."""

    def forward(self, x_BND: Tensor, rotary: Tensor, layout: Layout) -> Tensor:
        q = rms_norm_rotate(self.q(x_BND), self.norm_q.weight, rotary, self.num_heads)
        k = rms_norm_rotate(self.k(x_BND), self.norm_k.weight, rotary, self.num_heads)
        return self.o(layout.attend(q, k, self.heads(self.v(x_BND))).flatten(2))


class CrossAttention(Attention):
    """Video tokens attend to the text and, in image models, to an image: two attentions, added.

    Keys and values do not change from step to step.
    """

    def __init__(self, dim: int, num_heads: int, *, with_image: bool) -> None:
        super().__init__(dim, num_heads)
        if with_image:
            self.k_img = nn.Linear(dim, dim)
            self.v_img = nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim)

    def sources(self, text_BLD: Tensor, image_BLD: Tensor | None) -> Sources:
        """Keys and values of the text and of the image, if there is one: once per clip, not once per step."""
        text = (self.heads(self.norm_k(self.k(text_BLD))), self.heads(self.v(text_BLD)))
        if image_BLD is None:
            return (text,)
        return text, (self.heads(self.norm_k_img(self.k_img(image_BLD))), self.heads(self.v_img(image_BLD)))

    def forward(self, x_BND: Tensor, sources: Sources) -> Tensor:
        q = self.heads(self.norm_q(self.q(x_BND)))
        attended = attend(q, *sources[0]).flatten(2)
        for keys, values in sources[1:]:
            attended = attended + attend(q, keys, values).flatten(2)
        return self.o(attended)
