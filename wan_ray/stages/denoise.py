"""Denoise: noise drawn from the row's seed becomes clean latents under its text."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.dit import DiT
from wan_ray.request import ResolvedRequest
from wan_ray.sampling.loop import OnStep, Velocity, denoise, guided
from wan_ray.stages.items import Item

LATENT_CHANNELS = 16


def latent_shape(request: ResolvedRequest) -> tuple[int, int, int, int]:
    """[channels, latent frames, rows, columns]: the VAE's steps are 4 in time and 8 in space."""
    return (LATENT_CHANNELS, (request.num_frames - 1) // 4 + 1, request.height // 8, request.width // 8)


def draw_noise(request: ResolvedRequest) -> Tensor:
    """The row's noise, float32: drawn whole on the CPU, so that it is the same on any device and cluster shape."""
    return torch.randn(latent_shape(request), generator=torch.Generator().manual_seed(request.seed))


class DenoiseStage:
    """Owns the DiT."""

    name = "denoise"

    def __init__(self, model: DiT, fingerprint: str) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> Self:
        """CheckpointError when the weights do not fit."""
        return cls(*checkpoint.load_dit(dtype=dtype, device=device))

    @torch.inference_mode()
    def __call__(self, item: Item, on_step: OnStep | None = None) -> Item:
        """The item with tensor latents, float32 [16, T, h, w], on the CPU; on_step(done, total) after each step."""
        request = item.sound
        conditional = self._velocity(item.tensors["context"])
        velocity = conditional
        if request.guidance_scale != 1:
            velocity = guided(conditional, self._velocity(item.tensors["negative_context"]), request.guidance_scale)
        latents = denoise(
            velocity,
            draw_noise(request)[None].to(self.device),
            solver=request.solver,
            num_inference_steps=request.num_inference_steps,
            flow_shift=request.flow_shift,
            on_step=on_step,
        )
        weights = {**item.weights, "transformer": self.fingerprint}
        return replace(item, tensors={"latents": latents[0].cpu()}, weights=weights)

    def _velocity(self, context_LD: Tensor) -> Velocity:
        context = self.model.encode_context(context_LD.to(self.device))
        return lambda latents, timestep: self.model(latents, timestep, context)
