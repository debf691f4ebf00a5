"""Decode: latents become frames, and frames an MP4 (or a PNG for one image) without ever being held all at once."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from wan_ray.config import VideoSection
from wan_ray.errors import StageError
from wan_ray.media.image import encode_png
from wan_ray.media.video import encode_mp4
from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.vae import WanVAE
from wan_ray.stages.items import Clip, Item


class DecodeStage:
    """Owns the VAE."""

    def __init__(self, vae: WanVAE, fingerprint: str, video: VideoSection) -> None:
        self.vae = vae
        self.fingerprint = fingerprint
        self.video = video
        self.device = next(vae.parameters()).device

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, device: torch.device, video: VideoSection) -> Self:
        """CheckpointError when the weights do not fit."""
        vae, fingerprint = checkpoint.load_vae(device=device)
        return cls(vae, fingerprint, video)

    def __call__(self, item: Item) -> Item:
        """The item with its clip; StageError when the latents are not finite or the encoder fails."""
        request = item.sound
        chunks = self.frames(item.tensors["latents"])
        if request.task == "t2i":
            clip = Clip(data=encode_png(next(chunks)[0]), suffix=".png", num_frames=1)
        else:
            clip = self._encode(chunks, width=request.width, height=request.height, fps=request.fps)
        return replace(item, tensors={}, clip=clip, weights={**item.weights, "vae": self.fingerprint})

    @torch.inference_mode()
    def frames(self, latents_CTHW: Tensor) -> Iterator[np.ndarray]:
        """Frames in order, uint8 [n, H, W, 3], n = 1 and then 4 at a time; values are rounded, not cut."""
        if not torch.isfinite(latents_CTHW).all():
            raise StageError("the latents hold NaN or infinity; render in float32 or bfloat16, or lower guidance_scale")
        for chunk in self.vae.decode_chunks(latents_CTHW[None].to(self.device)):
            levels = ((chunk[0] + 1) * 127.5).round_().to(torch.uint8)
            yield levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def _encode(self, chunks: Iterator[np.ndarray], *, width: int, height: int, fps: float) -> Clip:
        with tempfile.TemporaryDirectory(prefix="wan-ray-") as folder:
            file = Path(folder) / "clip.mp4"
            settings = self.video
            num_frames = encode_mp4(
                chunks,
                path=file,
                width=width,
                height=height,
                fps=fps,
                crf=settings.crf,
                preset=settings.preset,
                threads=settings.threads,
            )
            return Clip(data=file.read_bytes(), suffix=".mp4", num_frames=num_frames)
