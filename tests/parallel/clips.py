"""DiT checkpoints of random weights, and encoded items of every task: what the ranks of a test are given.

Conditions are random too, so that no encoder is needed.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.debug import DebugSizes, Kind, random_tensor
from wan_ray.model.dit import DiT
from wan_ray.model.weights import shapes_of
from wan_ray.resolved import ResolvedRequest
from wan_ray.stages.denoise import latent_shape
from wan_ray.stages.items import Item

KINDS: dict[str, Kind] = {"t2v": "t2v", "t2i": "t2v", "i2v": "i2v", "flf2v": "flf2v", "vace": "vace"}
CPU = torch.device("cpu")
Size = tuple[int, int, int]  # width, height, frames


def write_dit(folder: Path, kind: Kind, **sizes: int) -> Checkpoint:
    """A checkpoint that has a DiT and nothing else; sizes: fields of its architecture that differ from the debug's."""
    architecture = replace(DebugSizes.of(kind).dit, **sizes)
    folder.mkdir(parents=True, exist_ok=True)
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    with torch.device("meta"):
        shapes = shapes_of(DiT(architecture))
    save_file({name: random_tensor(kind, name, shape, 0) for name, shape in shapes.items()}, weights)
    config.write_text(json.dumps({"dim": architecture.dim, "num_heads": architecture.num_heads}))
    return Checkpoint(
        layout="released",
        dit_files=(weights,),
        dit_config=config,
        text_encoder_files=(),
        vae_files=(),
        image_encoder_files=(),
        tokenizer=folder,
    )


def make_item(
    task: str,
    *,
    size: Size = (80, 80, 9),
    num_references: int = 0,
    text_dim: int = 4096,
    **fields: object,
) -> Item:
    """An encoded item, of 75 tokens unless a size is given."""
    width, height, num_frames = size
    request = ResolvedRequest(
        **{
            "id": "clip",
            "variant": "debug",
            "task": task,
            "prompt": "a road",
            "negative_prompt": "blurred",
            "width": width,
            "height": height,
            "num_frames": num_frames,
            "fps": 16.0,
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "flow_shift": 5.0,
            "solver": "unipc",
            "seed": 11,
            "context_scale": 0.8,
            "labels": {},
            "media": {"reference_images": ["a picture"] * num_references} if num_references else {},
            **fields,
        }
    )
    return Item(
        name="clip",
        id="clip",
        row=0,
        request=request,
        prompt=request.prompt,
        tensors=_conditions(request, num_references, text_dim),
    )


def _conditions(request: ResolvedRequest, num_references: int, text_dim: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(5)
    _, *grid = latent_shape(request, num_references=num_references)
    shapes: dict[str, tuple[int, ...]] = {"context": (9, text_dim), "negative_context": (6, text_dim)}
    if request.task in ("i2v", "flf2v"):
        shapes |= {"image_features": (257 if request.task == "i2v" else 514, 1280), "condition": (20, *grid)}
    if request.task == "vace":
        shapes["vace_context"] = (96, *grid)
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def digest(tensor: Tensor) -> str:
    """Equal for equal bits."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def difference(found: Tensor, wanted: Tensor) -> float:
    """Length of the difference over the length of what is wanted."""
    assert found.shape == wanted.shape
    return ((found - wanted).norm() / wanted.norm()).item()
