"""The Wan2.1 denoiser. Letters: B batch, C channels, T H W latent frames, rows, columns, N tokens, D width."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.attention import WHOLE, Layout, Sources
from wan_ray.model.blocks import Block, ImageEmbedding, VaceBlock
from wan_ray.model.fused import modulate
from wan_ray.model.rope import rotary_table
from wan_ray.model.step_cache import PassCache
from wan_ray.variants import DiTArchitecture

TEXT_LENGTH = 512
PATCH = 2  # rows and columns of one token; a token is one latent frame deep

# These decide the residual stream's precision and cost next to nothing: kept in float32 whatever the weights are.
_FLOAT32_PARTS = ("modulation", "norm", "time_embedding", "time_projection", "head", "img_emb")


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a clip's steps have in common: keys and values per block, and what the latents are conditioned on.

    condition: [1, C, T, H, W], joined to the latents' channels (image models). control: tokens [1, N, D] (VACE), as
    laid out.
    """

    blocks: list[Sources]
    vace_blocks: list[Sources]
    layout: Layout
    condition: Tensor | None = None
    control: Tensor | None = None
    control_scale: float = 1.0


class Head(nn.Module):
    """The last norm and projection, in float32."""

    def __init__(self, dim: int, out_features: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x_BND: Tensor, time_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation + time_BD[:, None]).split(1, dim=1)
        return self.head(modulate(x_BND, shift, scale))


class DiT(nn.Module):
    """Velocity of noisy latents under a text; parameters named as released (Wan2.1 model.py, vace_model.py, 9737cba).

    The caller owns dtype and device; parameters named in _FLOAT32_PARTS must stay float32 (see parameter_dtype).
    """

    def __init__(self, architecture: DiTArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        dim = architecture.dim
        self.patch_embedding = _patch_embedding(architecture.in_channels, dim)
        self.text_embedding = nn.Sequential(
            nn.Linear(architecture.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(architecture.frequency_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_layers))
        self.head = Head(dim, PATCH * PATCH * architecture.out_channels)
        if architecture.image_tokens:
            self.img_emb = ImageEmbedding(architecture)
        if architecture.vace_layers:
            self.vace_patch_embedding = _patch_embedding(architecture.vace_in_channels, dim)
            self.vace_blocks = nn.ModuleList(VaceBlock(architecture, first=n == 0) for n in architecture.vace_layers)

    def blocks_in_order(self) -> list[Block]:
        """The blocks of both streams, as a forward pass runs through them."""
        order = []
        for index, block in enumerate(_blocks(self.blocks)):
            order.append(block)
            if index in self.architecture.vace_layers:
                order.append(_vace_blocks(self)[self.architecture.vace_layers.index(index)])
        return order

    def encode_context(
        self,
        context_LD: Tensor,
        *,
        image_features: Tensor | None = None,
        condition: Tensor | None = None,
        vace_context: Tensor | None = None,
        context_scale: float = 1.0,
        layout: Layout = WHOLE,
    ) -> Context:
        """What all steps of one clip share, computed once.

        context_LD: a text of at most 512 tokens, [L, text_dim]; it is padded with zeros to 512 tokens that are
        attended to, as the model was trained. image_features: CLIP's [257 or 514, 1280]; condition: [20, T, H, W]
        (both for image models). vace_context: [96, T, H, W]; context_scale: the weight of VACE's hints. layout: that of
        the clip's tokens in every step.
        """
        dtype = self.patch_embedding.weight.dtype
        padded = F.pad(context_LD.to(dtype), (0, 0, 0, TEXT_LENGTH - context_LD.shape[0]))
        text = self.text_embedding(padded[None])
        image = None if image_features is None else self.img_emb(image_features[None].float()).to(dtype)
        control = (
            None if vace_context is None else _embed_patches(self.vace_patch_embedding, vace_context[None], layout)
        )
        return Context(
            blocks=[block.sources(text, image) for block in _blocks(self.blocks)],
            vace_blocks=[] if control is None else [block.sources(text, image) for block in _blocks(self.vace_blocks)],
            layout=layout,
            condition=None if condition is None else condition[None],
            control=control,
            control_scale=context_scale,
        )

    def forward(self, latents_BCTHW: Tensor, timestep: int, context: Context, cache: PassCache | None = None) -> Tensor:
        """Velocity, float32, of the shape of the latents; rows and columns must be even.

        cache: of the same clip and pass in every step; with it, some steps are not computed.
        """
        _, _, frames, rows, columns = latents_BCTHW.shape
        grid = (frames, rows // PATCH, columns // PATCH)
        head_dim = self.architecture.dim // self.architecture.num_heads
        layout, dtype = context.layout, self.patch_embedding.weight.dtype
        rotary = layout.shard(rotary_table(grid, head_dim, latents_BCTHW.device), dim=0)
        time_BD = self.time_embedding(sinusoid(timestep, self.architecture.frequency_dim, latents_BCTHW.device))
        time_B6D = self.time_projection(time_BD).unflatten(1, (6, -1))
        if context.condition is not None:
            latents_BCTHW = torch.cat([latents_BCTHW, context.condition], dim=1)
        x = _embed_patches(self.patch_embedding, latents_BCTHW, layout)
        stream, first, rest = None, None, None
        for index, block in enumerate(self.blocks):
            x_next = block(x, time_B6D, rotary, context.blocks[index], layout)
            if cache is not None and index == 0:
                first = x_next  # only with a cache is it kept until the pass ends: it is as large as x
                rest = cache.rest((x_next - x).to(dtype), layout)
                if rest is not None:
                    x = x_next + rest
                    break
            if context.control is not None and index in self.architecture.vace_layers:
                # Hints depend on the stream alone, so each is made where it is used, and none is kept. The first layer
                # that takes one is the first of all: x still is what was embedded.
                n = self.architecture.vace_layers.index(index)
                vace_block = _vace_blocks(self)[n]
                stream = vace_block.enter(context.control, x) if stream is None else stream
                stream = vace_block(stream, time_B6D, rotary, context.vace_blocks[n], layout)
                x_next = x_next + context.control_scale * vace_block.hint(stream)
            x = x_next
        if cache is not None and first is not None and rest is None:
            cache.keep((x - first).to(dtype))
        return _unpatchify(layout.gather(self.head(x, time_BD)), grid)


def _patch_embedding(in_channels: int, dim: int) -> nn.Conv3d:
    return nn.Conv3d(in_channels, dim, (1, PATCH, PATCH), stride=(1, PATCH, PATCH))


def _embed_patches(embedding: nn.Conv3d, x_BCTHW: Tensor, layout: Layout) -> Tensor:
    """Patches as rows of one matrix product: [B, N, D] in float32, as laid out."""
    patches = x_BCTHW.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))  # B C T h p w q
    rows = layout.shard(patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3), dim=1)
    return F.linear(rows.to(embedding.weight.dtype), embedding.weight.flatten(1), embedding.bias).float()


def _blocks(modules: nn.ModuleList) -> Iterable[Block]:
    return cast(Iterable[Block], modules)


def _vace_blocks(model: DiT) -> Sequence[VaceBlock]:
    return cast(Sequence[VaceBlock], model.vace_blocks)


def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a parameter is stored in when the model computes in dtype."""
    return torch.float32 if any(part in name for part in _FLOAT32_PARTS) else dtype


def sinusoid(timestep: int, dim: int, device: torch.device) -> Tensor:
    """Cosines then sines of the timestep at dim / 2 frequencies, float32 [1, dim], computed in float64."""
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim // 2))
    angles = timestep * frequencies
    return torch.cat([angles.cos(), angles.sin()])[None].float()


def _unpatchify(x_BND: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A token's features are row, column, channel: back to [B, C, T, H, W]."""
    x = x_BND.unflatten(1, grid).unflatten(-1, (PATCH, PATCH, -1))  # B T h w p q C
    return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
