"""Drawn clips and single frames as latents, made once and kept: what the DiT is trained on."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_ray.demo.captions import scenes
from wan_ray.demo.dit_training import Examples
from wan_ray.demo.scenes import Scene, draw
from wan_ray.demo.vae_training import CPU, as_video, encode
from wan_ray.model.vae import WanVAE


@torch.no_grad()
def encoded(file: Path, vae: WanVAE, *, num: int, num_frames: int, seed: int, device: torch.device = CPU) -> Examples:
    """Latents of the first frames of scenes that are not held out; read from the file where it exists."""
    drawn = scenes(num, held_out=False, seed=seed)
    if not file.exists():
        latents, vehicle = zip(*(_encoded(vae, scene, num_frames, device) for scene in drawn), strict=True)
        partial = file.with_suffix(".partial")
        torch.save({"latents": torch.cat(latents), "vehicle": torch.cat(vehicle)}, partial)
        partial.replace(file)
    kept = torch.load(file, weights_only=True)
    return Examples(latents=kept["latents"].to(device), vehicle=kept["vehicle"].to(device), scenes=drawn)


def _encoded(vae: WanVAE, scene: Scene, num_frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frames = draw(scene, num_frames=num_frames)
    with torch.autocast(device.type, torch.bfloat16):
        latents_BCTHW = encode(vae, as_video(frames)[None].to(device))
    return latents_BCTHW.cpu(), vehicle_mask(scene, frames, vae)[None]


def vehicle_mask(scene: Scene, frames: np.ndarray, vae: WanVAE) -> Tensor:
    """Of each latent whether it covers some of the vehicle, 0 or 1, float32 [1, T, H, W]."""
    empty = draw(scene, num_frames=min(len(frames), 4), with_vehicle=False)
    # Rain and snow repeat every four frames, from the first on.
    differs = np.abs(frames.astype(np.int16) - empty[np.arange(len(frames)) % 4]).max(-1) > 25
    per_frame = F.max_pool2d(torch.from_numpy(differs.astype(np.float32))[:, None], vae.architecture.spatial_stride)
    per_latent = [per_frame[:1], *(chunk.amax(0, keepdim=True) for chunk in per_frame[1:].split(4) if len(chunk))]
    return torch.cat(per_latent).transpose(0, 1)
