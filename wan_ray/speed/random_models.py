"""Models of the released sizes with random weights, made on the device; no file is read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wan_ray.costs.bucket import Bucket
from wan_ray.costs.flops import ImageEncoderSizes, TextEncoderSizes, VAESizes
from wan_ray.model.blocks import IMAGE_WIDTH
from wan_ray.model.dit import TEXT_LENGTH, Context, DiT, parameter_dtype
from wan_ray.model.quantize import quantizer
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.model.weights import TensorFiles, load_, shapes_of
from wan_ray.variants import DiTArchitecture, Quantization, Variant

if TYPE_CHECKING:
    from transformers import CLIPVisionModel, UMT5EncoderModel


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of all models of a variant."""

    dit: DiTArchitecture
    vae: VAESizes = VAESizes()
    text: TextEncoderSizes = TextEncoderSizes()
    image: ImageEncoderSizes = ImageEncoderSizes()

    @classmethod
    def of(cls, variant: Variant, num_layers: int | None) -> "Sizes":
        """With only so many layers in the DiT and in the text encoder, if a number is given."""
        sizes = cls._all(variant)
        if num_layers is None:
            return sizes
        hinted = tuple(layer for layer in sizes.dit.vace_layers if layer < num_layers)
        return replace(
            sizes,
            dit=replace(sizes.dit, num_layers=num_layers, vace_layers=hinted),
            text=replace(sizes.text, num_layers=min(num_layers, sizes.text.num_layers)),
        )

    @classmethod
    def _all(cls, variant: Variant) -> "Sizes":
        if variant.architecture is not None:
            return cls(dit=variant.architecture)
        # Imported here: it needs the tokenizer's packages, and only debug models their sizes.
        from wan_ray.model.debug import DebugSizes

        debug = DebugSizes.of(variant.tasks[0]) if variant.tasks[0] in ("i2v", "flf2v", "vace") else DebugSizes()
        return cls(
            dit=debug.dit,
            vae=VAESizes(base_dim=debug.vae.base_dim, num_res_blocks=debug.vae.num_res_blocks),
            text=TextEncoderSizes(**vars(debug.text_encoder)),
            image=ImageEncoderSizes(**vars(debug.image_encoder)),
        )


def random_dit(
    sizes: DiTArchitecture, device: torch.device, dtype: torch.dtype, quantization: Quantization = "none"
) -> DiT:
    """In the dtypes it is rendered with; MissingExtraError when a quantization lacks its package."""
    with torch.device("meta"):
        model = DiT(sizes)
    quantize = quantizer(quantization, dtype=dtype, device=device)
    _fill_(model, device, lambda name: parameter_dtype(name, dtype), quantize)
    return model.eval()


def random_vae(sizes: VAESizes, device: torch.device) -> WanVAE:
    """In float32, as it is always run."""
    with torch.device("meta"):
        model = WanVAE(VAEArchitecture(base_dim=sizes.base_dim, num_res_blocks=sizes.num_res_blocks))
    _fill_(model, device, lambda _: torch.float32)
    return model.eval()


def random_text_encoder(sizes: TextEncoderSizes, device: torch.device, dtype: torch.dtype) -> "UMT5EncoderModel":
    """ImportError without transformers and the tokenizer's packages."""
    from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder

    with torch.device("meta"):
        model = build_text_encoder(TextEncoderArchitecture(**vars(sizes)))
    _fill_(model, device, lambda _: dtype)
    return model.eval()


def random_image_encoder(sizes: ImageEncoderSizes, device: torch.device) -> "CLIPVisionModel":
    """In float32, as it is run; ImportError without transformers."""
    from wan_ray.model.image_encoder import ImageEncoderArchitecture, build_image_encoder

    with torch.device("meta"):
        model = build_image_encoder(ImageEncoderArchitecture(**vars(sizes)))
    _fill_(model, device, lambda _: torch.float32)
    return model.eval()


def random_latents(bucket: Bucket, device: torch.device) -> Tensor:
    """Of one clip, float32 [1, 16, T, H / 8, W / 8]."""
    return torch.randn(1, 16, *_latent_shape(bucket), device=device)


def random_context(model: DiT, bucket: Bucket, device: torch.device) -> Context:
    """Of one text of full length, and an image or a control where the model has one."""
    sizes, extra = model.architecture, {}
    if sizes.image_tokens:
        extra["image_features"] = torch.randn(sizes.image_tokens, IMAGE_WIDTH, device=device)
        extra["condition"] = torch.randn(20, *_latent_shape(bucket), device=device)
    if sizes.vace_layers:
        extra["vace_context"] = torch.randn(sizes.vace_in_channels, *_latent_shape(bucket), device=device)
    return model.encode_context(torch.randn(TEXT_LENGTH, sizes.text_dim, device=device), **extra)


def _latent_shape(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.num_latent_frames, bucket.height // 8, bucket.width // 8


def _fill_(
    model: torch.nn.Module,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    then: Callable[[str, torch.nn.Module], None] | None = None,
) -> None:
    """Normally distributed, and scaled so that activations keep their size."""
    shapes = shapes_of(model)

    def read(name: str) -> Tensor:
        shape = shapes[name]
        if len(shape) == 1 and ("norm" in name or "gamma" in name):
            return torch.ones(shape, device=device)
        values = torch.empty(shape, device=device, dtype=dtype_of(name)).normal_()
        return values.mul_(0.05 if len(shape) <= 1 else torch.Size(shape[1:]).numel() ** -0.5)

    tensors = TensorFiles(shapes, read, "random")
    load_(model, tensors, device=device, dtype_of=dtype_of, what="random model", then=then)
