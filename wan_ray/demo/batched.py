"""Text encoder and DiT as one module that is trained: a batch of clips, each with its own timestep, text and image.

B: clips, C: channels, T: latent frames, H, W: rows and columns, N: video tokens, L: text or image tokens, D: width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.attention import CrossAttention, SelfAttention
from wan_ray.model.blocks import Block, modulate
from wan_ray.model.dit import PATCH, TEXT_LENGTH, DiT, sinusoid
from wan_ray.model.rope import rotary_table
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder
from wan_ray.variants import DiTArchitecture

BlockForward = Callable[[Block, Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor, Tensor | None], Tensor]
_LENGTHS = (32, 128, TEXT_LENGTH)  # texts are padded to one of these, so that a compiled block is compiled seldom


@dataclass(frozen=True, kw_only=True)
class FirstFrames:
    """What I2V's clips go on from: condition [B, 20, T, H, W], and the images as the DiT's tokens [B, L, D]."""

    condition: Tensor
    image: Tensor

    def at(self, indices: np.ndarray) -> "FirstFrames":
        """Those of some clips."""
        return FirstFrames(condition=self.condition[indices], image=self.image[indices])


class Model(nn.Module):
    """Text encoder and DiT; forward is what training differentiates."""

    def __init__(self, text_encoder: TextEncoderArchitecture, dit: DiTArchitecture) -> None:
        super().__init__()
        self.dit = DiT(dit)
        self.text_encoder = build_text_encoder(text_encoder)

    def forward(
        self,
        latents_BCTHW: Tensor,
        timesteps: Tensor,
        ids: list[list[int]],
        *,
        first: FirstFrames | None = None,
        block: BlockForward | None = None,
    ) -> Tensor:
        """Velocities of clips at a timestep each, under a text each; block: a compiled block_forward, or None."""
        text_BLD, lengths_B = self.embed(ids, latents_BCTHW.device)
        block = block or block_forward
        return velocity(self.dit, latents_BCTHW, timesteps, text_BLD, lengths_B, first=first, block=block)

    def embed(self, ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D], zero after a text's end, and the texts' lengths [B]."""
        lengths_B = torch.tensor([len(text) for text in ids], device=device)
        longest = max(len(text) for text in ids)
        padded_to = next(length for length in _LENGTHS if length >= longest)
        padded_BL = torch.tensor([text + [0] * (padded_to - len(text)) for text in ids], device=device)
        mask_BL = torch.arange(padded_to, device=device) < lengths_B[:, None]
        embedded = self.text_encoder(input_ids=padded_BL, attention_mask=mask_BL.long()).last_hidden_state
        return embedded * mask_BL[..., None], lengths_B


def velocity(
    dit: DiT,
    latents_BCTHW: Tensor,
    timesteps: Tensor,
    text_BLD: Tensor,
    lengths_B: Tensor,
    *,
    first: FirstFrames | None = None,
    block: BlockForward,
) -> Tensor:
    """DiT.forward for clips with a timestep and a text each.

    The padding to 512 tokens, all alike, is one token here that counts for as many as it stands for.
    """
    device = latents_BCTHW.device
    _, _, frames, rows, columns = latents_BCTHW.shape
    grid = (frames, rows // PATCH, columns // PATCH)
    table = rotary_table(grid, dit.architecture.dim // dit.architecture.num_heads, device)
    rotary = (table.real.contiguous(), table.imag.contiguous())
    times = [sinusoid(int(t), dit.architecture.frequency_dim, device) for t in timesteps]
    time_BD = dit.time_embedding(torch.cat(times)).float()
    time_B6D = dit.time_projection(time_BD).unflatten(1, (6, -1)).float()
    text_BLD = dit.text_embedding(F.pad(text_BLD, (0, 0, 0, 1)))
    bias_BL = torch.zeros(text_BLD.shape[:2], device=device)
    bias_BL.masked_fill_(torch.arange(text_BLD.shape[1], device=device) >= lengths_B[:, None], -math.inf)
    bias_BL[:, -1] = torch.log(TEXT_LENGTH - lengths_B)
    if first is not None:
        latents_BCTHW = torch.cat([latents_BCTHW, first.condition], dim=1)
    image_BLD = None if first is None else first.image
    x = dit.patch_embedding(latents_BCTHW).flatten(2).transpose(1, 2).float()
    for layer in dit.blocks:
        x = block(cast(Block, layer), x, time_B6D, rotary, text_BLD, bias_BL, image_BLD)
    x = dit.head(x, time_BD).unflatten(1, grid).unflatten(-1, (PATCH, PATCH, -1))
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4).float()


def block_forward(  # noqa: PLR0917  (torch.compile and its caller pass all by place)
    block: Block,
    x_BND: Tensor,
    time_B6D: Tensor,
    rotary: tuple[Tensor, Tensor],
    text_BLD: Tensor,
    bias_BL: Tensor,
    image_BLD: Tensor | None,
) -> Tensor:
    """Block.forward with a weight per text token."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.modulation + time_B6D).split(1, dim=1)
    x = x_BND + _self_attention(block.self_attn, modulate(x_BND, shift, scale), rotary) * gate
    x = x + _cross_attention(block.cross_attn, block.norm3(x), text_BLD, bias_BL, image_BLD)
    return x + block.ffn(modulate(x, ffn_shift, ffn_scale)) * ffn_gate


def _self_attention(attention: SelfAttention, x_BND: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    q = _rotated(attention.heads(attention.norm_q(attention.q(x_BND))), rotary)
    k = _rotated(attention.heads(attention.norm_k(attention.k(x_BND))), rotary)
    v = attention.heads(attention.v(x_BND))
    return attention.o(_attend(q.transpose(1, 2), k, v, None).transpose(1, 2).flatten(2))


def _rotated(x_BNHD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """model.rope.rotate in real numbers, since torch.compile leaves complex ones alone."""
    cosine, sine = rotary
    even, odd = x_BNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2).to(x_BNHD.dtype)


def _cross_attention(
    attention: CrossAttention, x_BND: Tensor, text_BLD: Tensor, bias_BL: Tensor, image_BLD: Tensor | None
) -> Tensor:
    q = attention.heads(attention.norm_q(attention.q(x_BND))).transpose(1, 2)
    text, *image = attention.sources(text_BLD, image_BLD)
    attended = _attend(q, *text, bias_BL[:, None, None])
    for keys, values in image:
        attended = attended + _attend(q, keys, values, None)
    return attention.o(attended.transpose(1, 2).flatten(2))


def _attend(q_BHND: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, bias: Tensor | None) -> Tensor:
    """Attention with a weight per key, which is added to the logits."""
    q, k, v = q_BHND, k_BLHD.transpose(1, 2), v_BLHD.transpose(1, 2)
    if q.device.type != "cpu":
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=bias)
    # Written out: torch's fused kernel is three times slower backward on a CPU in bfloat16.
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if bias is not None:
        logits = logits.float() + bias
    return torch.softmax(logits, dim=-1).to(v.dtype) @ v
