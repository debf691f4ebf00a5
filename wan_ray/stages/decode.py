"""Decode: latents become frames, and frames an MP4 (or a PNG for one image) without ever being held all at once."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self, TypeVar

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
from wan_ray.stages.memory import Ladder
from wan_ray.stages.read import bucket_of

Result = TypeVar("Result")

_TILES = (256, 128)  # pixels each way, tried when there is no memory for more
_FIX = (
    "raise stages.decode.num_gpus so that fewer workers share a GPU, set it to 0 to decode on CPUs, or render fewer "
    "pixels or frames"
)


class DecodeStage:
    """Owns the VAE. It decodes whole frames while there is memory for that, and else tiles of them."""

    def __init__(self, vae: WanVAE, fingerprint: str, video: VideoSection, *, tile: int | None = None) -> None:
        """tile: pixels each way to begin with, for whole frames are too much."""
        self.vae = vae
        self.fingerprint = fingerprint
        self.video = video
        self.device = next(vae.parameters()).device
        self._ladder = Ladder("decode", (tile, *(smaller for smaller in _TILES if tile is None or smaller < tile)))

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, device: torch.device, video: VideoSection, tile: int | None = None
    ) -> Self:
        """CheckpointError when the weights do not fit."""
        vae, fingerprint = checkpoint.load_vae(device=device)
        return cls(vae, fingerprint, video, tile=tile)

    def __call__(self, item: Item) -> Item:
        """The item with its clip; StageError when the latents are not finite or the encoder fails.

        OutOfMemoryError when there is not even memory for small tiles.
        """
        clip, tile = self.with_frames(item, lambda chunks: self._clip(item, chunks))
        rendered_on = {**item.rendered_on, **({"decode_tile": str(tile)} if tile else {})}
        weights = {**item.weights, "vae": self.fingerprint}
        return replace(item, tensors={}, clip=clip, weights=weights, rendered_on=rendered_on)

    def with_frames(self, item: Item, use: Callable[[Iterator[np.ndarray]], Result]) -> tuple[Result, int | None]:
        """What use makes of the item's frames, and the tile they were decoded in; after less memory it is called again.

        Frames are as frames() gives them.
        """
        latents = item.tensors["latents"]
        return self._ladder.climb(
            bucket_of(item.sound), lambda tile: (use(self.frames(latents, tile=tile)), tile), fix=_FIX
        )

    @torch.inference_mode()
    def frames(self, latents_CTHW: Tensor, *, tile: int | None = None) -> Iterator[np.ndarray]:
        """Frames in order, uint8 [n, H, W, 3], n = 1 and then 4 at a time; values are rounded, not cut.

        tile: of at most so many pixels each way at a time, to the same frames but for rounding.
        """
        if not torch.isfinite(latents_CTHW).all():
            raise StageError("the latents hold NaN or infinity; render in float32 or bfloat16, or lower guidance_scale")
        most = tile and tile // self.vae.architecture.spatial_stride
        for chunk in self.vae.decode_chunks(latents_CTHW[None].to(self.device), tile=most):
            levels = ((chunk[0] + 1) * 127.5).round_().to(torch.uint8)
            yield levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()

    def _clip(self, item: Item, chunks: Iterator[np.ndarray]) -> Clip:
        request = item.sound
        if request.task == "t2i":
            return Clip(data=encode_png(next(chunks)[0]), suffix=".png", num_frames=1)
        return self._encode(chunks, width=request.width, height=request.height, fps=request.fps)

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
