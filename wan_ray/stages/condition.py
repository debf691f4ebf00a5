"""Conditions: what a row's images and videos become before denoising. Part of the encode stage."""

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from wan_ray.media.image import load_image
from wan_ray.media.vace_row import read_vace_row
from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.conditioning import (
    compat_last_frame_crop,
    first_frame_condition,
    fit_last_frame,
    letterbox_reference,
    vace_context,
)
from wan_ray.model.image_encoder import encode_image
from wan_ray.model.vae import WanVAE
from wan_ray.parallel.offload import Offload, Weights
from wan_ray.sizes import image_to_video_size
from wan_ray.stages.items import Item
from wan_ray.variants import Variant

if TYPE_CHECKING:
    from transformers import CLIPVisionModel


class Conditioner(Protocol):
    """What makes conditions of a row's images and videos."""

    def __call__(self, item: Item, *, offload: Offload = "none", tile: int | None = None) -> Item:
        """The item with its conditions.

        offload: where its models are between their uses. tile: pixels each way that the VAE encodes at a time.
        """


class ImageConditioner:
    """Owns CLIP and a VAE, for models that continue a first frame, and those that go from a first to a last."""

    def __init__(
        self, image_encoder: "CLIPVisionModel", vae: WanVAE, variant: Variant, weights: dict[str, str]
    ) -> None:
        self.image_encoder = image_encoder
        self.vae = vae
        self.device = next(vae.parameters()).device
        self._image_encoder_weights = Weights(image_encoder, (), self.device)
        self._vae_weights = Weights(vae, (), self.device)
        self.max_pixels = variant.sizes[0][0] * variant.sizes[0][1]
        self.weights = weights

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, device: torch.device, variant: Variant) -> Self:
        """CheckpointError when the weights do not fit. CLIP runs once a clip: in float32, which costs nothing."""
        image_encoder, clip = checkpoint.load_image_encoder(dtype=torch.float32, device=device)
        vae, fingerprint = checkpoint.load_vae(device=device)
        return cls(image_encoder, vae, variant, {"image_encoder": clip, "vae": fingerprint})

    @torch.inference_mode()
    def __call__(self, item: Item, *, offload: Offload = "none", tile: int | None = None) -> Item:
        """The item with tensors image_features [257 or 514, 1280] and condition [20, T, h, w], on the CPU.

        Without width and height the first image decides the size, by its aspect and the model's area.
        """
        self._image_encoder_weights.keep(offload)
        self._vae_weights.keep(offload)
        request = item.sound
        first = as_tensor(load_image(request.media["image"][0], what="image")).to(self.device)
        _, rows, columns = first.shape
        if not request.width:
            width, height = image_to_video_size(columns, rows, self.max_pixels)
            request = replace(request, width=width, height=height)
        images, last = [first], None
        if "last_image" in request.media:
            last = as_tensor(load_image(request.media["last_image"][0], what="last_image")).to(self.device)
            fit = compat_last_frame_crop if request.compat == "released" else fit_last_frame
            last = fit(last, width=columns, height=rows)
            images.append(last)
        with self._vae_weights:
            condition = first_frame_condition(
                self.vae,
                first,
                width=request.width,
                height=request.height,
                num_frames=request.num_frames,
                last_CHW=last,
                tile=tile,
            )
        with self._image_encoder_weights:
            features = torch.cat([encode_image(self.image_encoder, image) for image in images])
        tensors = {"image_features": features.cpu(), "condition": condition.cpu()}
        return replace(item, request=request, tensors=tensors, weights={**item.weights, **self.weights})


def as_tensor(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] as float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


class VaceConditioner:
    """Owns a VAE, for models that follow a control video, fill a mask, and take references."""

    def __init__(self, vae: WanVAE, fingerprint: str) -> None:
        self.vae = vae
        self.fingerprint = fingerprint
        self._vae_weights = Weights(vae, (), next(vae.parameters()).device)

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, device: torch.device) -> Self:
        """CheckpointError when the weights do not fit."""
        return cls(*checkpoint.load_vae(device=device))

    @torch.inference_mode()
    def __call__(self, item: Item, *, offload: Offload = "none", tile: int | None = None) -> Item:
        """The item with tensor vace_context [96, references + T, h, w] on the CPU, and where its frames come from.

        Its request has what the row's sources decided.
        """
        self._vae_weights.keep(offload)
        row = read_vace_row(item.sound)
        request, inputs = row.request, row.inputs
        size = {"width": request.width, "height": request.height}
        frames = None
        if inputs.frames is not None:
            frames = torch.from_numpy(inputs.frames).permute(3, 0, 1, 2).float() / 127.5 - 1
        references = [letterbox_reference(as_tensor(image), **size) for image in inputs.references]
        mask = torch.from_numpy(inputs.mask)
        with self._vae_weights:
            context = vace_context(self.vae, frames, mask, references, **size, num_frames=request.num_frames, tile=tile)
        return replace(
            item,
            request=request,
            inputs={**item.inputs, **row.places},
            tensors={"vace_context": context.cpu()},
            weights={**item.weights, "vae": self.fingerprint},
        )
