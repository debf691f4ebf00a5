"""Every layout of ranks denoises clips of every task and of many lengths; reports how far they are from one rank's."""

import sys
from functools import partial
from pathlib import Path

import torch
import worlds
from clips import CPU, KINDS, Size, difference, digest, make_item, write_dit
from torch import Tensor

from wan_ray.degrees import Degrees
from wan_ray.model.attention import WHOLE, Layout
from wan_ray.model.dit import PATCH, DiT
from wan_ray.parallel.process_group import Groups, open_groups
from wan_ray.parallel.sequence import SequenceParallel, torch_attention
from wan_ray.stages.denoise import DenoiseStage, Place, draw_noise
from wan_ray.stages.items import Item
from wan_ray.variants import Quantization

LAYOUTS = [(1, 2, 1), (1, 1, 2), (2, 1, 1), (1, 4, 1), (1, 2, 2), (2, 2, 1), (2, 1, 2)]
PADS = [0.0, 1e4, float("nan")]

# Width, height, frames, and the tokens they make: (frames + 3) / 4 * width / 16 * height / 16.
EVEN, UNEVEN, LONG, ODD = (128, 64, 5), (80, 80, 9), (160, 96, 17), (112, 80, 9)  # 64, 75, 300, 105
PICTURE, FEWER, ONE = (112, 80, 1), (80, 64, 1), (16, 16, 1)  # 35, 20, 1

# Name: (task, attention heads, size, what else the request says). 3 and 6 heads do not divide by some of the degrees.
CASES: dict[str, tuple[str, int, Size, dict[str, object]]] = {
    **{f"{task} even": (task, 4, EVEN, {}) for task in ("t2v", "i2v", "flf2v", "vace")},
    **{f"{task} uneven 3 heads": (task, 3, UNEVEN, {"solver": "dpm++"}) for task in ("t2v", "i2v", "flf2v", "vace")},
    "vace references": ("vace", 4, UNEVEN, {"num_references": 2}),
    "t2i": ("t2i", 3, PICTURE, {}),
    "t2i fewer tokens than ranks can use": ("t2i", 4, FEWER, {}),
    "t2i one token": ("t2i", 3, ONE, {}),
    "t2v 300 tokens": ("t2v", 4, LONG, {"num_inference_steps": 1}),
    "t2v 105 tokens 6 heads": ("t2v", 6, ODD, {"solver": "euler"}),
    "t2v 105 tokens 1 head": ("t2v", 1, ODD, {}),
    "t2v no guidance": ("t2v", 4, UNEVEN, {"guidance_scale": 1.0}),
    # Random weights change by 0.5 to 0.9 from step to step.
    "t2v shortcuts": ("t2v", 4, UNEVEN, {"num_inference_steps": 6, "step_cache": 0.7, "guidance_interval": [0.2, 0.7]}),
    "vace shortcuts": ("vace", 3, UNEVEN, {"num_inference_steps": 6, "step_cache": 0.7}),
    "t2v int8": ("t2v", 4, UNEVEN, {}),
    "vace float8": ("vace", 3, UNEVEN, {}),
}
QUANTIZED: dict[str, Quantization] = {"t2v int8": "int8", "vace float8": "float8"}
ITEMS: dict[str, Item] = {name: make_item(task, size=size, **more) for name, (task, _, size, more) in CASES.items()}
FOLDER = Path(sys.argv[2])
CHECKPOINTS = {
    (kind, heads): write_dit(FOLDER / f"{kind}-{heads}", kind, num_heads=heads)
    for kind, heads in {(KINDS[task], heads) for task, heads, _, _ in CASES.values()}
}


def load(kind: str, heads: int, quantization: Quantization = "none") -> DiT:
    return CHECKPOINTS[kind, heads].load_dit(dtype=torch.float32, device=CPU, quantization=quantization)[0]


MODELS = {key: load(*key) for key in CHECKPOINTS}
MODELS_OF_CASES = {
    name: load(KINDS[task], heads, QUANTIZED[name]) if name in QUANTIZED else MODELS[KINDS[task], heads]
    for name, (task, heads, _, _) in CASES.items()
}


def denoised(name: str, place: Place) -> tuple[Tensor, str | None]:
    """Latents, and how many steps were computed where some may be left out."""
    item = DenoiseStage(MODELS_OF_CASES[name], "weights", place)(ITEMS[name])
    return item.tensors["latents"], item.rendered_on.get("steps_computed")


@torch.inference_mode()
def velocity(model: DiT, item: Item, layout: Layout) -> Tensor:
    """Of the first step, from a layout of any pad."""
    text, control = item.tensors["context"], item.tensors["vace_context"]
    context = model.encode_context(text, vace_context=control, layout=layout)
    return model(draw_noise(item.sound)[None], 900, context)


# Of one process: before ranks are forked from here.
WANTED = {name: denoised(name, Place(device=CPU)) for name in CASES}
PADDED = ITEMS["vace uneven 3 heads"]
VELOCITY = velocity(MODELS["vace", 3], PADDED, WHOLE)


def padded(groups: Groups) -> dict[str, object]:
    """What pads of other values change."""
    _, frames, rows, columns = PADDED.tensors["vace_context"].shape
    num_tokens = frames * (rows // PATCH) * (columns // PATCH)
    attention, found = torch_attention(groups), []
    for pad in PADS:
        layout = SequenceParallel(groups=groups, num_tokens=num_tokens, attention=attention, pad=pad)
        found.append(velocity(MODELS["vace", 3], PADDED, layout))
    held = layout.shard(torch.zeros(num_tokens), dim=0).shape[0]
    return {
        "pad tokens": held * groups.degrees.sequence - num_tokens,
        "digests": [digest(x) for x in found],
        "off": difference(found[0], VELOCITY),
    }


def program(degrees: Degrees, rank: int, address: str) -> dict[str, object]:
    with open_groups(degrees, rank=rank, address=address, timeout_s=60, device=CPU) as groups:
        divides = groups.sequence is not None
        place = Place(device=CPU, groups=groups, attention=torch_attention(groups) if divides else None)
        cases = {}
        for name, (wanted, _) in WANTED.items():
            latents, computed = denoised(name, place)
            cases[name] = {"digest": digest(latents), "off": difference(latents, wanted), "computed": computed}
        return {"cases": cases, "pads": padded(groups) if divides else None}


def main() -> None:
    results: dict[str, object] = {"one process": {name: digest(x) for name, (x, _) in WANTED.items()}}
    results["steps computed"] = {name: computed for name, (_, computed) in WANTED.items()}
    for cfg, ulysses, ring in LAYOUTS:
        degrees = Degrees(cfg=cfg, ulysses=ulysses, ring=ring)
        results[f"{cfg} {ulysses} {ring}"] = worlds.run(degrees.world_size, partial(program, degrees), timeout_s=120)
    worlds.report(results)


if __name__ == "__main__":
    main()
