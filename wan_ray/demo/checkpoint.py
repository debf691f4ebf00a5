"""Writes what was trained in the layout of the release, small: bfloat16, and float16 for the VAE.

The I2V model lies in a folder of the T2V one, without what the two share and without what is random by a recipe.
"""

import json
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_ray.demo.batched import Model
from wan_ray.demo.tokens import write_tokenizer
from wan_ray.model.blocks import ImageEmbedding
from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, VAE_FILE, dit_architecture
from wan_ray.model.debug import random_tensor, released_config, write_image_encoder
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.key_maps import text_encoder_name_to_released
from wan_ray.model.vae import WanVAE
from wan_ray.variants import DiTArchitecture

I2V_FOLDER = "i2v"
_DIT_FILE = "diffusion_pytorch_model.safetensors"
_IMAGE_EMBEDDING = "img_emb."


def write_checkpoint(out: Path, model: Model, vae: WanVAE) -> None:
    """Write the four parts of the T2V model into the folder."""
    write_tokenizer(out)
    _write_dit(out, model.dit, "t2v")
    text_encoder = {
        text_encoder_name_to_released(name): _kept(value, torch.bfloat16)
        for name, value in model.text_encoder.named_parameters()
    }
    torch.save(text_encoder, out / TEXT_ENCODER_FILE)
    torch.save({name: _kept(value, torch.float16) for name, value in vae.named_parameters()}, out / VAE_FILE)


def write_i2v(out: Path, dit: DiT) -> None:
    """Write the denoiser of the I2V model into its folder of the T2V one."""
    folder = out / I2V_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    _write_dit(folder, dit, "i2v")


def unpack(weights: Path, out: Path, *, i2v: bool = False) -> None:
    """Copy the T2V or the I2V model of what the two functions above wrote: a whole checkpoint, as any other.

    The latter gets the CLIP and the embedding of its features that it was trained with, which are random.
    """
    copytree(weights, out, dirs_exist_ok=True, ignore=ignore_patterns(I2V_FOLDER))
    if not i2v:
        return
    copytree(weights / I2V_FOLDER, out, dirs_exist_ok=True)
    write_image_encoder(out)
    tensors = load_file(out / _DIT_FILE)
    heads = json.loads((out / "config.json").read_text(encoding="utf-8"))["num_heads"]
    architecture = dit_architecture({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config_heads=heads)
    save_file(tensors | random_image_embedding(architecture), out / _DIT_FILE)


def random_image_embedding(architecture: DiTArchitecture) -> dict[str, Tensor]:
    """What an I2V denoiser of this width embeds CLIP's features with, untrained, by the name of its tensors."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ImageEmbedding(architecture).named_parameters()}
    names = {f"{_IMAGE_EMBEDDING}{name}": shape for name, shape in shapes.items()}
    return {name: random_tensor("i2v", name, shape, 0) for name, shape in names.items()}


def _write_dit(folder: Path, dit: DiT, kind: Literal["t2v", "i2v"]) -> None:
    trained = {
        name: _kept(value, parameter_dtype(name, torch.bfloat16))
        for name, value in dit.named_parameters()
        if not name.startswith(_IMAGE_EMBEDDING)
    }
    save_file(trained, folder / _DIT_FILE)
    config = released_config(kind, dit.architecture)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _kept(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype).contiguous()
