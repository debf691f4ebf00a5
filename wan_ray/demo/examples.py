"""Drawn clips and single frames as latents, made once and kept: what the DiT is trained on."""

import logging
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

logger = logging.getLogger(__name__)
_SAVE_EVERY = 50  # scenes


@torch.no_grad()
def encoded(file: Path, vae: WanVAE, *, num: int, num_frames: int, seed: int, device: torch.device = CPU) -> Examples:
    """Latents of the first frames of scenes that are not held out; what the file has of them is not made again."""
    drawn = scenes(num, held_out=False, seed=seed)
    kept = torch.load(file, weights_only=True) if file.exists() else {"latents": [], "vehicle": []}
    for index in range(len(kept["latents"]), num):
        latents_1CTHW, vehicle_11THW = _encoded(vae, drawn[index], num_frames, device)
        kept["latents"].append(latents_1CTHW)
        kept["vehicle"].append(vehicle_11THW)
        if (index + 1) % _SAVE_EVERY == 0 or index + 1 == num:
            partial = file.with_suffix(".partial")
            torch.save(kept, partial)
            partial.replace(file)
            logger.info("encoded %d of %d", index + 1, num)
    latents, vehicle = (torch.cat(kept[name][:num]).to(device) for name in ("latents", "vehicle"))
    return Examples(latents=latents, vehicle=vehicle, scenes=drawn)


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
