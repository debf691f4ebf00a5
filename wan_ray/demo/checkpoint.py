"""Writes what was trained in the layout of the release, small: bfloat16, and float16 for the VAE."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wan_ray.demo.batched import Model
from wan_ray.demo.tokens import write_tokenizer
from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, VAE_FILE
from wan_ray.model.debug import released_config
from wan_ray.model.dit import parameter_dtype
from wan_ray.model.key_maps import text_encoder_name_to_released
from wan_ray.model.vae import WanVAE


def write_checkpoint(out: Path, model: Model, vae: WanVAE) -> None:
    """Write the four parts into the folder."""
    write_tokenizer(out)
    dit = {name: _kept(value, parameter_dtype(name, torch.bfloat16)) for name, value in model.dit.named_parameters()}
    save_file(dit, out / "diffusion_pytorch_model.safetensors")
    config = released_config("t2v", model.dit.architecture)
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    text_encoder = {
        text_encoder_name_to_released(name): _kept(value, torch.bfloat16)
        for name, value in model.text_encoder.named_parameters()
    }
    torch.save(text_encoder, out / TEXT_ENCODER_FILE)
    torch.save({name: _kept(value, torch.float16) for name, value in vae.named_parameters()}, out / VAE_FILE)


def _kept(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to("cpu", dtype).contiguous()
