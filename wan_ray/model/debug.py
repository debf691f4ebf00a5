"""Tiny random checkpoints in the released layout: for trying the whole path without weights, and for tests."""

import json
import zlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, TOKENIZER_FOLDER, VAE_FILE
from wan_ray.model.dit import DiT
from wan_ray.model.key_maps import text_encoder_name_to_released
from wan_ray.model.text_encoder import TextEncoderArchitecture, build_text_encoder
from wan_ray.model.vae import VAEArchitecture, WanVAE
from wan_ray.variants import DiTArchitecture


@dataclass(frozen=True, kw_only=True)
class DebugSizes:
    """How large a random model is; the vocabulary is that of the packaged tokenizer."""

    dit: DiTArchitecture = DiTArchitecture(dim=96, ffn_dim=128, num_heads=4, num_layers=3, frequency_dim=32)
    vae: VAEArchitecture = VAEArchitecture(base_dim=8, num_res_blocks=1)
    text_encoder: TextEncoderArchitecture = TextEncoderArchitecture(
        vocab_size=430, dim=4096, num_layers=2, num_heads=4, head_dim=8, ffn_dim=64
    )


def random_tensor(part: str, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 values that depend on these arguments alone, on any machine: numpy's RandomState stream is frozen.

    Scaled so that activations keep their size; no output layer is zero, so every tensor matters to the result.
    """
    normal = np.random.RandomState(zlib.crc32(f"{seed}/{part}/{name}".encode())).standard_normal(shape)
    z = torch.from_numpy(normal.astype(np.float32)).reshape(shape)
    if ("norm" in name and name.endswith("weight") and len(shape) == 1) or "gamma" in name:
        return 1 + 0.1 * z
    if len(shape) <= 1:
        return 0.05 * z
    if name.endswith("token_embedding.weight"):
        return z
    if name.endswith("modulation"):
        return 0.3 * z
    return z * int(np.prod(shape[1:])) ** -0.5


def write_debug_checkpoint(out: Path, *, sizes: DebugSizes | None = None, seed: int = 0, num_shards: int = 1) -> None:
    """Write a T2V checkpoint of random weights into a folder, in the layout of the release."""
    sizes = sizes or DebugSizes()
    with torch.device("meta"):
        dit, vae = DiT(sizes.dit), WanVAE(sizes.vae)
        text_encoder = build_text_encoder(sizes.text_encoder)
    out.mkdir(parents=True, exist_ok=True)
    t5_shapes = {text_encoder_name_to_released(k): v.shape for k, v in text_encoder.named_parameters()}
    torch.save(_random("t5", t5_shapes, seed, torch.bfloat16), out / TEXT_ENCODER_FILE)
    vae_shapes = {k: v.shape for k, v in vae.state_dict().items()}
    torch.save(_random("vae", vae_shapes, seed, torch.float32), out / VAE_FILE)
    _save_sharded(
        _random("t2v", {k: v.shape for k, v in dit.state_dict().items()}, seed, torch.float32), out, num_shards
    )
    (out / "config.json").write_text(json.dumps(_released_config(sizes.dit), indent=2))
    with as_file(files("wan_ray.model") / "debug_tokenizer") as tokenizer:
        copytree(tokenizer, out / TOKENIZER_FOLDER, dirs_exist_ok=True)


def _random(part: str, shapes: dict[str, torch.Size], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: random_tensor(part, name, tuple(shape), seed).to(dtype) for name, shape in shapes.items()}


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


def _released_config(dit: DiTArchitecture) -> dict[str, object]:
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": dit.dim,
        "ffn_dim": dit.ffn_dim,
        "freq_dim": dit.frequency_dim,
        "in_dim": dit.in_channels,
        "out_dim": dit.out_channels,
        "num_heads": dit.num_heads,
        "num_layers": dit.num_layers,
        "eps": 1e-6,
        "text_len": 512,
    }
