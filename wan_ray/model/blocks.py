"""The blocks of the denoiser. Letters: B batch, N tokens, D width."""

import torch
from torch import Tensor, nn

from wan_ray.model.attention import CrossAttention, Layout, SelfAttention, Sources
from wan_ray.model.fused import EPS, gate, layer_norm, modulate
from wan_ray.variants import DiTArchitecture

IMAGE_WIDTH = 1280  # of CLIP ViT-H/14
TOKENS_PER_IMAGE = 257


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward on a float32 residual stream."""

    def __init__(self, architecture: DiTArchitecture) -> None:
        super().__init__()
        dim = architecture.dim
        self.self_attn = SelfAttention(dim, architecture.num_heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, architecture.num_heads, with_image=architecture.image_tokens > 0)
        self.ffn = nn.Sequential(
            nn.Linear(dim, architecture.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(architecture.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(self, x_BND: Tensor, time_B6D: Tensor, rotary: Tensor, context: Sources, layout: Layout) -> Tensor:
        dtype = self.self_attn.q.weight.dtype
        shift, scale, weight, ffn_shift, ffn_scale, ffn_weight = (self.modulation + time_B6D).split(1, dim=1)
        x = x_BND
        x = gate(x, self.self_attn(modulate(x, shift, scale, dtype), rotary, layout), weight)
        x = x + self.cross_attn(layer_norm(x, self.norm3, dtype), context)
        return gate(x, self.ffn(modulate(x, ffn_shift, ffn_scale, dtype)), ffn_weight)

    def sources(self, text_BLD: Tensor, image_BLD: Tensor | None) -> Sources:
        """Keys and values its cross-attention takes from the text and the image."""
        return self.cross_attn.sources(text_BLD, image_BLD)


class VaceBlock(Block):
    """A block of VACE's second stream, which hands a hint to the main one; a subclass since its names are a block's."""

    def __init__(self, architecture: DiTArchitecture, *, first: bool) -> None:
        super().__init__(architecture)
        if first:
            self.before_proj = nn.Linear(architecture.dim, architecture.dim)
        self.after_proj = nn.Linear(architecture.dim, architecture.dim)

    def enter(self, control_BND: Tensor, x_BND: Tensor) -> Tensor:
        """The stream's start: the control's tokens, projected, on those of the noisy latents; first block only."""
        return self.before_proj(control_BND.to(self.before_proj.weight.dtype)) + x_BND

    def hint(self, stream_BND: Tensor) -> Tensor:
        """What the main stream adds after its block, float32."""
        return self.after_proj(stream_BND.to(self.after_proj.weight.dtype)).float()


class ImageEmbedding(nn.Module):
    """CLIP's tokens of one image, or of two with a position each, as tokens of the DiT; in float32."""

    def __init__(self, architecture: DiTArchitecture) -> None:
        super().__init__()
        width = IMAGE_WIDTH
        self.proj = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, architecture.dim),
            nn.LayerNorm(architecture.dim),
        )
        if architecture.image_tokens > TOKENS_PER_IMAGE:
            self.emb_pos = nn.Parameter(torch.empty(1, architecture.image_tokens, width))

    def forward(self, features_BLD: Tensor) -> Tensor:
        return self.proj(features_BLD + self.emb_pos if hasattr(self, "emb_pos") else features_BLD)
