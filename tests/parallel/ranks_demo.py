"""Gangs of every kind render a clip of the demo's weights; reports how far each is off one process and what is seen."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import worlds
from clips import CPU, difference, digest
from torch import Tensor
from xfuser_shim import import_xfuser, register_cpu_flash_attention

from wan_ray.degrees import Degrees
from wan_ray.demo.adherence import look
from wan_ray.demo.captions import caption, scenes
from wan_ray.demo.scenes import HEIGHT, NUM_FRAMES, WIDTH
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.parallel.offload import Offload
from wan_ray.parallel.process_group import Groups, open_groups
from wan_ray.parallel.xfuser_usp import xfuser_attention
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.denoise import DenoiseStage, Place
from wan_ray.stages.items import Item


@dataclass(frozen=True, kw_only=True)
class Gang:
    """How the ranks share a clip; xfuser: by its attention in place of ours."""

    degrees: Degrees
    fsdp: bool = False
    offload: Offload = "none"
    xfuser: bool = False


# The model has 3 heads and the clip 540 tokens: Ulysses 3 divides both, Ulysses 2 leaves a head over.
GANGS = {
    "ulysses 2": Gang(degrees=Degrees(ulysses=2)),
    "cfg 2, ulysses 3": Gang(degrees=Degrees(cfg=2, ulysses=3)),
    "ulysses 3, fsdp": Gang(degrees=Degrees(ulysses=3), fsdp=True),
    "cfg 2, fsdp, offload": Gang(degrees=Degrees(cfg=2), fsdp=True, offload="blocks"),
    "ring 2, fsdp": Gang(degrees=Degrees(ring=2), fsdp=True),
    "ulysses 3, ring 2": Gang(degrees=Degrees(ulysses=3, ring=2)),
    "xfuser ulysses 3": Gang(degrees=Degrees(ulysses=3), xfuser=True),
    "xfuser ring 2": Gang(degrees=Degrees(ring=2), xfuser=True),
}

import_xfuser()
register_cpu_flash_attention()
WEIGHTS = Path(str(files("wan_ray"))) / "demo" / "weights"
CHECKPOINT = find_checkpoint(WEIGHTS)
RENDERER = Renderer.from_checkpoint(WEIGHTS, dtype="float32", device="cpu")
SCENE = scenes(2, held_out=True, seed=1000)[1]
REQUEST = RenderRequest(
    prompt=caption(SCENE), width=WIDTH, height=HEIGHT, num_frames=NUM_FRAMES, num_inference_steps=6, seed=1
)


def encoded() -> Item:
    request = resolve(REQUEST, RENDERER.variant)
    return RENDERER.encode(Item(name="clip", id="clip", row=None, request=request, prompt=request.prompt))


# Of one process: before ranks are forked from here.
ITEM = encoded()
WANTED = RENDERER.denoise(ITEM).tensors["latents"]


def stage_of(gang: Gang, groups: Groups) -> DenoiseStage:
    if gang.xfuser:
        model = RENDERER.denoise.model
        backend = "SDPA" if groups.ring is None else "SDPA_FLASH"  # as in ranks_xfuser.py
        attention = xfuser_attention(groups, num_heads=model.architecture.num_heads, backend=backend)
        return DenoiseStage(model, "weights", Place(device=CPU, groups=groups, attention=attention))
    return DenoiseStage.load(
        CHECKPOINT,
        dtype=torch.float32,
        device=CPU,
        groups=groups,
        strategy="torch",
        fsdp=gang.fsdp,
        offload=gang.offload,
    )


def program(gang: Gang, rank: int, address: str) -> dict[str, object]:
    with open_groups(gang.degrees, rank=rank, address=address, timeout_s=60, device=CPU) as groups:
        latents = stage_of(gang, groups)(ITEM).tensors["latents"]
        found = {"digest": digest(latents), "off": difference(latents, WANTED)}
        return {**found, "latents": latents.numpy()} if rank == 0 else found


def frames_of(latents: Tensor) -> np.ndarray:
    return np.concatenate(list(RENDERER.decode.frames(latents))).astype(np.int16)


def main() -> None:
    whole = frames_of(WANTED)
    frames, gangs = {digest(WANTED): whole}, {}
    for name, gang in GANGS.items():
        ranks = worlds.run(gang.degrees.world_size, partial(program, gang), timeout_s=120)
        latents, key = torch.from_numpy(ranks[0].pop("latents")), ranks[0]["digest"]
        if key not in frames:
            frames[key] = frames_of(latents)
        off = np.abs(frames[key] - whole)
        gangs[name] = {
            "ranks": ranks,
            "levels": int(off.max()),
            "psnr_db": 10 * math.log10(255**2 / np.square(off).mean()) if off.any() else None,
            "seen": asdict(look(frames[key].astype(np.uint8))),
        }
    worlds.report(
        {
            "asked": {name: getattr(SCENE, name) for name in ("colour", "motion", "time")},
            "seen": asdict(look(whole.astype(np.uint8))),
            "digest": digest(WANTED),
            "gangs": gangs,
        }
    )


if __name__ == "__main__":
    main()
