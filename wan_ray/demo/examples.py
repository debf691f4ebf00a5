"""Drawn clips and single frames as latents, made once and kept: what the DiT is trained on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan_ray.demo.captions import scenes
from wan_ray.demo.dit_training import Examples
from wan_ray.demo.progress import half_precision
from wan_ray.demo.scenes import Scene, draw
from wan_ray.demo.vae_training import CPU, as_video, encode
from wan_ray.model.conditioning import first_frame_condition
from wan_ray.model.image_encoder import encode_image
from wan_ray.model.vae import WanVAE
from wan_ray.stages.condition import as_tensor

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

logger = logging.getLogger(__name__)
_SAVE_EVERY = 50  # scenes


@torch.no_grad()
def encoded(
    file: Path,
    vae: WanVAE,
    *,
    num: int,
    num_frames: int,
    seed: int,
    image_encoder: "CLIPVisionModel | None" = None,
    device: torch.device = CPU,
) -> Examples:
    """Latents of the first frames of scenes that are not held out; what the file has of them is not made again.

    With an image encoder, also what a first frame is to I2V.
    """
    drawn = scenes(num, held_out=False, seed=seed)
    kept = torch.load(file, weights_only=True) if file.exists() else []
    for index in range(len(kept), num):
        frames = draw(drawn[index], num_frames=num_frames)
        with half_precision(device):
            latents_BCTHW = encode(vae, as_video(frames)[None].to(device))
        example = {"latents": latents_BCTHW.cpu(), "vehicle": vehicle_mask(drawn[index], frames, vae)[None]}
        if image_encoder is not None:
            example |= _continued(vae, image_encoder, frames, device)
        kept.append(example)
        if (index + 1) % _SAVE_EVERY == 0 or index + 1 == num:
            partial = file.with_suffix(".partial")
            torch.save(kept, partial)
            partial.replace(file)
            logger.info("encoded %d of %d", index + 1, num)
    stacked = {name: torch.cat([example[name] for example in kept[:num]]).to(device) for name in kept[0]}
    return Examples(scenes=drawn, **stacked)


def _continued(
    vae: WanVAE, image_encoder: "CLIPVisionModel", frames: np.ndarray, device: torch.device
) -> dict[str, Tensor]:
    first_CHW = as_tensor(frames[0]).to(device)
    _, height, width = first_CHW.shape
    condition = first_frame_condition(vae, first_CHW, width=width, height=height, num_frames=len(frames))
    features = encode_image(image_encoder, first_CHW)
    return {"condition": condition[None].cpu(), "image_features": features[None].half().cpu()}


def vehicle_mask(scene: Scene, frames: np.ndarray, vae: WanVAE) -> Tensor:
    """Of each latent whether it covers some of the vehicle, 0 or 1, float32 [1, T, H, W]."""
    empty = draw(scene, num_frames=min(len(frames), 4), with_vehicle=False)
    # Rain and snow repeat every four frames, from the first on.
    differs = np.abs(frames.astype(np.int16) - empty[np.arange(len(frames)) % 4]).max(-1) > 25
    per_frame = F.max_pool2d(torch.from_numpy(differs.astype(np.float32))[:, None], vae.architecture.spatial_stride)
    per_latent = [per_frame[:1], *(chunk.amax(0, keepdim=True) for chunk in per_frame[1:].split(4) if len(chunk))]
    return torch.cat(per_latent).transpose(0, 1)
