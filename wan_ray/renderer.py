"""Renderer: the whole path in one process, without Ray: for library use, GPU benchmarks, and as the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import JsonValue
from torch import Tensor

from wan_ray.config import Device, DType, ModelSection
from wan_ray.extend_section import ExtendSection
from wan_ray.request import RenderRequest
from wan_ray.resolved import ResolvedRequest, resolve
from wan_ray.sampling.loop import OnStep
from wan_ray.stages.decode import DecodeStage
from wan_ray.stages.denoise import DenoiseStage
from wan_ray.stages.encode import EncodeStage
from wan_ray.stages.extend import ExtendStage
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader, variant_of
from wan_ray.variants import Quantization, get_variant


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """frames: uint8 [F, H, W, 3]. latents: float32 [16, T, h, w]. request: with what defaults and sources decide.

    inputs: which frames of its sources the clip shows, and where their pixels went, as a record has it; so has it
    extension, which says how the request's prompt came about where it was rewritten.
    """

    frames: np.ndarray
    latents: Tensor
    request: ResolvedRequest
    inputs: Mapping[str, JsonValue]
    extension: Mapping[str, JsonValue]


class Renderer:
    """Owns the three models, all on one device. Called with a request, it renders it and returns."""

    def __init__(
        self,
        encode: EncodeStage,
        denoise: DenoiseStage,
        decode: DecodeStage,
        *,
        variant: str | None = None,
        extend: ExtendStage | None = None,
    ) -> None:
        self.extend = extend
        self.encode = encode
        self.denoise = denoise
        self.decode = decode
        self.variant = get_variant(variant or variant_of(denoise.model.architecture))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        companions: str | Path | None = None,
        variant: str | None = None,
        dtype: DType | None = None,
        device: Device = "auto",
        quantization: Quantization = "none",
        extend: ExtendSection | None = None,
    ) -> Self:
        """Load a released folder, a -Diffusers folder or a lone DiT file with companions; path may be an fsspec URL.

        The weights say which variant they are, but for the two of I2V, of which it is the 480P one unless named.
        Without a dtype: bfloat16 on a GPU, float32 on a CPU. extend says who rewrites the prompts of requests
        that ask for it; what was answered is kept as long as the renderer. CheckpointError when the weights do not fit,
        MissingExtraError when a quantization lacks its package.
        """
        section = ModelSection(
            variant="debug",  # any architecture, to read which one it is
            checkpoint=str(path),
            companions=None if companions is None else str(companions),
            dtype=dtype or "auto",
            device=device,
            quantization=quantization,
        )
        name = variant or variant_of(StageLoader(model=section).checkpoint().check())
        loader = StageLoader(model=section.model_copy(update={"variant": name}))
        extends = None if extend is None else ExtendStage(extend)
        return cls(loader.encode(), loader.denoise(), loader.decode(), variant=name, extend=extends)

    def __call__(self, request: RenderRequest, *, on_step: OnStep | None = None) -> Rendered:
        """Render one request; RequestError when this model cannot, StageError when it fails.

        on_step(done, total) is called after each denoising step; what it raises stops the rendering.
        """
        resolved = resolve(request, self.variant, extends=self.extend is not None)
        item = Item(name="", id=resolved.id, row=None, request=resolved, prompt=resolved.prompt)
        item = item if self.extend is None else self.extend(item)
        denoised = self.denoise(self.encode(item), on_step)
        frames, _ = self.decode.with_frames(denoised, lambda chunks: np.concatenate(list(chunks)))
        latents = denoised.tensors["latents"]
        return Rendered(
            frames=frames, latents=latents, request=denoised.sound, inputs=denoised.inputs, extension=item.extension
        )
