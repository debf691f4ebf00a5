"""How good a written checkpoint is on held-out scenes, through the ordinary Renderer, and sheets to look at."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wan_ray.demo.adherence import Seen, agreement, look
from wan_ray.demo.captions import NUM_TEMPLATES, caption, scenes
from wan_ray.demo.scenes import HEIGHT, NUM_FRAMES, WIDTH, Scene, draw
from wan_ray.demo.vae_training import as_video
from wan_ray.media.contact_sheet import SheetEntry, contact_sheet
from wan_ray.media.image import encode_png
from wan_ray.model.vae import WanVAE
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest

logger = logging.getLogger(__name__)
_SEED = 1000  # of held-out scenes to judge by; training's seeds are far from it


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Held-out clips through the VAE and back: dB of each frame over all clips, and of everything."""

    psnr_per_frame: list[float]
    psnr: float
    entries: list[SheetEntry]


@dataclass(frozen=True, kw_only=True)
class Adherence:
    """Shares of clips that show what they were asked for, and of clips that show what another was: chance.

    psnr: dB of all clips beside the drawn ones; still_psnr: that of the drawn ones' first frames held.
    """

    own: dict[str, float]
    chance: dict[str, float]
    psnr: float
    still_psnr: float
    entries: list[SheetEntry]


@torch.no_grad()
def reconstruction(vae: WanVAE, *, num_clips: int, device: torch.device) -> Reconstruction:
    """Of the first held-out scenes, encoded and decoded as the engine does."""
    errors, entries = [], []
    for scene in scenes(num_clips, held_out=True, seed=_SEED):
        frames = draw(scene)
        video_BCFHW = as_video(frames)[None].to(device)
        decoded_BCFHW = vae.decode(vae.encode(video_BCFHW))
        errors.append(((decoded_BCFHW - video_BCFHW) / 2).square().mean((0, 1, 3, 4)).cpu())
        again = ((decoded_BCFHW[0].permute(1, 2, 3, 0).cpu() + 1) * 127.5).round().byte().numpy()
        entries += [
            SheetEntry(title="drawn", lines=[caption(scene)], frames=list(frames)),
            SheetEntry(title="decoded", lines=[f"{decibels(errors[-1].mean().item()):.1f} dB"], frames=list(again)),
        ]
    per_frame = torch.stack(errors).mean(0)
    return Reconstruction(
        psnr_per_frame=[decibels(error) for error in per_frame.tolist()],
        psnr=decibels(per_frame.mean().item()),
        entries=entries,
    )


def adherence(
    checkpoint: Path, *, num_prompts: int, settings: Mapping[str, object] | None = None, device: str = "cpu"
) -> Adherence:
    """Renders the first held-out scenes at the defaults, but for these fields of the requests, and looks at the clips.

    Every third prompt is Chinese. Seeds are the prompts' numbers. An I2V model gets the drawn first frames.
    """
    renderer = Renderer.from_checkpoint(checkpoint, device="cuda" if device.startswith("cuda") else "cpu")
    continues = "i2v" in renderer.variant.tasks
    drawn = scenes(num_prompts, held_out=True, seed=_SEED)
    seen, errors, still_errors, entries = [], [], [], []
    for index, scene in enumerate(drawn):
        prompt, truth = caption(scene, index % NUM_TEMPLATES), draw(scene)
        row = {"prompt": prompt, "height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES, "seed": index}
        if continues:
            row |= {"task": "i2v", "image": encode_png(truth[0])}
        request = RenderRequest.model_validate({**row, **(settings or {})})
        frames = renderer(request).frames
        errors.append(_squared_error(frames, truth))
        still_errors.append(_squared_error(truth[:1], truth))
        seen.append(look(frames))
        shown = seen[-1]
        found = f"seen: {shown.colour}, {shown.motion}, {shown.time}"
        entries.append(SheetEntry(title=caption(scene), lines=[prompt, found], frames=list(frames)))
        logger.info("judged prompt=%d agrees=%s", index, agreement(shown, scene))
    return Adherence(
        own=shares(seen, drawn),
        chance=shares(seen, [*drawn[1:], drawn[0]]),
        psnr=decibels(float(np.mean(errors))),
        still_psnr=decibels(float(np.mean(still_errors))),
        entries=entries,
    )


def _squared_error(frames: np.ndarray, truth: np.ndarray) -> float:
    return float(np.square((frames.astype(np.float32) - truth) / 255).mean())


def shares(seen: Sequence[Seen], asked: Sequence[Scene]) -> dict[str, float]:
    """For colour, motion and time: the part of the clips in which what is seen is what is asked for."""
    agreements = [agreement(shown, scene) for shown, scene in zip(seen, asked, strict=True)]
    return {name: float(np.mean([each[name] for each in agreements])) for name in agreements[0]}


def write_sheet(file: Path, entries: Sequence[SheetEntry]) -> None:
    """One PNG of all entries."""
    file.write_bytes(contact_sheet(entries))


def decibels(squared_error: float) -> float:
    """Peak signal to noise, of an error that is at most 1."""
    return -10 * math.log10(max(squared_error, 1e-12))
