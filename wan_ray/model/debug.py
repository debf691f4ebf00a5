"""Tiny random checkpoints in the released layout: for trying the whole path without weights, and for tests."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, TOKENIZER_FOLDER, VAE_FILE
from wan_ray.model.dit import DiT
from wan_ray.model.image_encoder import IMAGE_ENCODER_FILE, IMAGE_SIDE, PATCH_SIDE, ImageEncoderArchitecture
from wan_ray.model.key_maps import text_encoder_name_to_released
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import DiTArchitecture

Kind = Literal["t2v", "i2v", "flf2v", "vace"]


@dataclass(frozen=True, kw_only=True)
class DebugSizes:
    """How large a random model is; the vocabulary is that of the packaged tokenizer."""

    dit: DiTArchitecture = DiTArchitecture(dim=96, ffn_dim=128, num_heads=4, num_layers=3, frequency_dim=32)
    vae: VAEArchitecture = VAEArchitecture(base_dim=8, num_res_blocks=1)
    text_encoder: TextEncoderArchitecture = TextEncoderArchitecture(
        vocab_size=430, dim=4096, num_layers=2, num_heads=4, head_dim=8, ffn_dim=64
    )
    image_encoder: ImageEncoderArchitecture = ImageEncoderArchitecture(dim=1280, ffn_dim=64, num_layers=2)

    @classmethod
    def of(cls, kind: Kind) -> "DebugSizes":
        """With a denoiser that has what this kind of model has beyond a T2V one."""
        dit = cls().dit
        match kind:
            case "i2v":
                dit = replace(dit, in_channels=36, image_tokens=257)
            case "flf2v":
                dit = replace(dit, in_channels=36, image_tokens=514)
            case "vace":
                dit = replace(dit, vace_layers=(0, 2), vace_in_channels=96)
        return cls(dit=dit)


def random_tensor(part: str, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 values that depend on these arguments alone, on any machine: numpy's RandomState stream is frozen.

    Scaled so that activations keep their size; no output layer is zero, so every tensor matters to the result.
    """
    if name == "log_scale":
        return torch.full(shape, 2.6593)
    normal = np.random.RandomState(zlib.crc32(f"{seed}/{part}/{name}".encode())).standard_normal(shape)
    z = torch.from_numpy(normal.astype(np.float32)).reshape(shape)
    if ("norm" in name and name.endswith("weight") and len(shape) == 1) or "gamma" in name:
        return 1 + 0.1 * z
    if len(shape) <= 1:
        return 0.05 * z
    if name.endswith("token_embedding.weight"):
        return z
    if name.endswith("modulation") or "emb_pos" in name or ("embedding" in name and len(shape) == 3):
        return 0.3 * z
    return z * int(np.prod(shape[1:])) ** -0.5


def write_debug_checkpoint(
    out: Path, *, kind: Kind = "t2v", sizes: DebugSizes | None = None, seed: int = 0, num_shards: int = 1
) -> None:
    """Write a checkpoint of random weights into a folder, in the layout of the release; I2V and FLF2V have CLIP too."""
    sizes = sizes or DebugSizes.of(kind)
    with torch.device("meta"):
        dit, vae = DiT(sizes.dit), WanVAE(sizes.vae)
        text_encoder = build_text_encoder(sizes.text_encoder)
    out.mkdir(parents=True, exist_ok=True)
    t5_shapes = {text_encoder_name_to_released(k): v.shape for k, v in text_encoder.named_parameters()}
    torch.save(_random("t5", t5_shapes, seed, torch.bfloat16), out / TEXT_ENCODER_FILE)
    vae_shapes = {k: v.shape for k, v in vae.state_dict().items()}
    torch.save(_random("vae", vae_shapes, seed, torch.float32), out / VAE_FILE)
    if kind in ("i2v", "flf2v"):
        write_image_encoder(out, sizes.image_encoder, seed)
    _save_sharded(
        _random(kind, {k: v.shape for k, v in dit.state_dict().items()}, seed, torch.float32), out, num_shards
    )
    (out / "config.json").write_text(json.dumps(released_config(kind, sizes.dit), indent=2))
    with as_file(files("wan_ray.model") / "debug_tokenizer") as tokenizer:
        copytree(tokenizer, out / TOKENIZER_FOLDER, dirs_exist_ok=True)


def write_image_encoder(out: Path, sizes: ImageEncoderArchitecture = DebugSizes.image_encoder, seed: int = 0) -> None:
    """Write a CLIP of random weights into a folder."""
    torch.save(_random("clip", _clip_shapes(sizes), seed, torch.float16), out / IMAGE_ENCODER_FILE)


def _random(part: str, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: random_tensor(part, name, tuple(shape), seed).to(dtype) for name, shape in shapes.items()}


def _clip_shapes(sizes: ImageEncoderArchitecture) -> dict[str, tuple[int, ...]]:
    """Of the release's CLIP file, with all that is never run: the last block, the head and a text encoder."""
    dim, ffn_dim, text_dim = sizes.dim, sizes.ffn_dim, 16
    text = "textual.blocks.0"
    linears = {f"{text}.attn.{leaf}": (text_dim, text_dim) for leaf in "qkvo"}
    linears |= {f"{text}.ffn.0": (4 * text_dim, text_dim), f"{text}.ffn.2": (text_dim, 4 * text_dim)}
    norms = {f"{text}.norm1": text_dim, f"{text}.norm2": text_dim, "textual.norm": text_dim}
    norms |= {"visual.pre_norm": dim, "visual.post_norm": dim}
    for index in range(sizes.num_layers + 1):
        block = f"visual.transformer.{index}"
        linears |= {f"{block}.attn.to_qkv": (3 * dim, dim), f"{block}.attn.proj": (dim, dim)}
        linears |= {f"{block}.mlp.0": (ffn_dim, dim), f"{block}.mlp.2": (dim, ffn_dim)}
        norms |= {f"{block}.norm1": dim, f"{block}.norm2": dim}
    return {
        "log_scale": (),
        "visual.cls_embedding": (1, 1, dim),
        "visual.pos_embedding": (1, (IMAGE_SIDE // PATCH_SIDE) ** 2 + 1, dim),
        "visual.head": (dim, 8),
        "visual.patch_embedding.weight": (dim, 3, PATCH_SIDE, PATCH_SIDE),
        "textual.token_embedding.weight": (440, text_dim),
        "textual.type_embedding.weight": (1, text_dim),
        "textual.pos_embedding.weight": (514, text_dim),
        "textual.head.0.weight": (12, text_dim),
        "textual.head.2.weight": (8, 12),
        **{f"{name}.weight": shape for name, shape in linears.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linears.items()},
        **{f"{name}.{leaf}": (size,) for name, size in norms.items() for leaf in ("weight", "bias")},
    }


def _save_sharded(tensors: dict[str, Tensor], out: Path, num_shards: int) -> None:
    stem = "diffusion_pytorch_model"
    if num_shards == 1:
        save_file(tensors, out / f"{stem}.safetensors")
        return
    names, weight_map = sorted(tensors), {}
    for i in range(num_shards):
        file = f"{stem}-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[i * len(names) // num_shards : (i + 1) * len(names) // num_shards]
        save_file({name: tensors[name] for name in part}, out / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def released_config(kind: Kind, dit: DiTArchitecture) -> dict[str, object]:
    """What a release's config.json says of a denoiser of these sizes."""
    vace = {"vace_layers": dit.vace_layers, "vace_in_dim": dit.vace_in_channels} if kind == "vace" else {}
    return {
        "_class_name": "VaceWanModel" if kind == "vace" else "WanModel",
        "model_type": kind,
        "dim": dit.dim,
        "ffn_dim": dit.ffn_dim,
        "freq_dim": dit.frequency_dim,
        "in_dim": dit.in_channels,
        "out_dim": dit.out_channels,
        "num_heads": dit.num_heads,
        "num_layers": dit.num_layers,
        "eps": 1e-6,
        "text_len": 512,
        **vace,
    }
