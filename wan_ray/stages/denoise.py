"""Denoise: noise drawn from the row's seed becomes clean latents under its text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.dit import DiT
from wan_ray.model.lora import Adapter
from wan_ray.request import ResolvedRequest
from wan_ray.sampling.loop import OnStep, Velocity, denoise, guided
from wan_ray.stages.items import Item

LATENT_CHANNELS = 16


def latent_shape(request: ResolvedRequest, *, num_references: int = 0) -> tuple[int, int, int, int]:
    """[channels, latent frames, rows, columns]: the VAE steps by 4 in time and by 8 in space; references come first."""
    num_latent_frames = (request.num_frames - 1) // 4 + 1
    return (LATENT_CHANNELS, num_references + num_latent_frames, request.height // 8, request.width // 8)


def draw_noise(request: ResolvedRequest, *, num_references: int = 0) -> Tensor:
    """The row's noise, float32: drawn whole on the CPU, so that it is the same on any device and cluster shape."""
    shape = latent_shape(request, num_references=num_references)
    return torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))


class DenoiseStage:
    """Owns the DiT."""

    def __init__(self, model: DiT, fingerprint: str) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, adapters: Sequence[Adapter] = ()
    ) -> Self:
        """CheckpointError when the weights or the adapters do not fit."""
        return cls(*checkpoint.load_dit(dtype=dtype, device=device, adapters=adapters))

    @torch.inference_mode()
    def __call__(self, item: Item, on_step: OnStep | None = None) -> Item:
        """The item with tensor latents, float32 [16, T, h, w], on the CPU; on_step(done, total) after each step."""
        request = item.sound
        conditional = self._velocity(item, "context")
        velocity = conditional
        if request.guidance_scale != 1:
            velocity = guided(conditional, self._velocity(item, "negative_context"), request.guidance_scale)
        num_references = len(request.media.get("reference_images", ()))
        latents = denoise(
            velocity,
            draw_noise(request, num_references=num_references)[None].to(self.device),
            solver=request.solver,
            num_inference_steps=request.num_inference_steps,
            flow_shift=request.flow_shift,
            on_step=on_step,
        )
        weights = {**item.weights, "transformer": self.fingerprint}
        return replace(item, tensors={"latents": latents[0, :, num_references:].cpu()}, weights=weights)

    def _velocity(self, item: Item, text: str) -> Velocity:
        conditions = {
            name: item.tensors[name].to(self.device)
            for name in ("image_features", "condition", "vace_context")
            if name in item.tensors
        }
        context = self.model.encode_context(
            item.tensors[text].to(self.device), **conditions, context_scale=item.sound.context_scale
        )
        return lambda latents, timestep: self.model(latents, timestep, context)
