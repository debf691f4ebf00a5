"""diffusers' own models with the weights of one of our checkpoints: what the bench and the parity tests compare with.

Float32 on the CPU. Importing this without diffusers raises MissingExtraError.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from wan_ray.errors import MissingExtraError
from wan_ray.model.blocks import IMAGE_WIDTH, TOKENS_PER_IMAGE
from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.key_maps import dit_name_from_diffusers, vae_name_from_diffusers
from wan_ray.model.vae import VAEArchitecture
from wan_ray.model.weights import TensorFiles, load_

try:
    # From their homes: `diffusers` itself offers stand-ins of the same names, which a type checker finds first.
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
except ImportError as error:
    raise MissingExtraError(f"diffusers cannot be imported ({error}); install 'wan-ray[dev]'") from None

CPU = torch.device("cpu")


def diffusers_transformer(checkpoint: Checkpoint) -> WanTransformer3DModel | WanVACETransformer3DModel:
    """The checkpoint's DiT, of whatever task."""
    sizes = checkpoint.check()
    own: dict[str, Any] = {}
    if sizes.image_tokens:
        own = {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": sizes.dim}
        own["pos_embed_seq_len"] = sizes.image_tokens if sizes.image_tokens > TOKENS_PER_IMAGE else None
    if sizes.vace_layers:
        own = {"vace_layers": list(sizes.vace_layers), "vace_in_channels": sizes.vace_in_channels}
    model = (WanVACETransformer3DModel if sizes.vace_layers else WanTransformer3DModel)(
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.dim // sizes.num_heads,
        in_channels=sizes.in_channels,
        out_channels=sizes.out_channels,
        text_dim=sizes.text_dim,
        freq_dim=sizes.frequency_dim,
        ffn_dim=sizes.ffn_dim,
        num_layers=sizes.num_layers,
        **own,
    )
    _fill_(model, checkpoint.open_dit(), dit_name_from_diffusers)
    return model.eval()


def diffusers_vae(checkpoint: Checkpoint) -> AutoencoderKLWan:
    """The checkpoint's VAE."""
    tensors = checkpoint.open_vae()
    sizes = VAEArchitecture.from_shapes(tensors.shapes)
    model = AutoencoderKLWan(
        base_dim=sizes.base_dim,
        z_dim=sizes.z_dim,
        dim_mult=list(sizes.dim_mult),
        num_res_blocks=sizes.num_res_blocks,
        temperal_downsample=list(sizes.temporal_downsample),
    )
    _fill_(model, tensors, partial(vae_name_from_diffusers, num_res_blocks=sizes.num_res_blocks))
    return model.eval()


def diffusers_pipeline(checkpoint: Checkpoint, *, flow_shift: float) -> WanPipeline:
    """The whole pipeline; text encoder and tokenizer are transformers', the tokenizer from the same tokenizer.json."""
    encoder, _ = checkpoint.load_text_encoder(dtype=torch.float32, device=CPU)
    # Not through AutoTokenizer, whose umT5 in transformers 5 gives other ids than the release.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint.tokenizer / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    # Its annotations name one class where any tokenizer and scheduler will do.
    return WanPipeline(
        tokenizer=tokenizer,  # pyrefly: ignore[bad-argument-type]
        text_encoder=encoder,
        vae=diffusers_vae(checkpoint),
        scheduler=released_unipc(flow_shift),  # pyrefly: ignore[bad-argument-type]
        transformer=diffusers_transformer(checkpoint),  # pyrefly: ignore[bad-argument-type]
    )


def released_unipc(flow_shift: float) -> UniPCMultistepScheduler:
    """diffusers' UniPC on the released noise levels; on its own ones latents differ by 10 % in the end."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift)
    # Any: diffusers says list[float], but computes with an array.
    set_timesteps: Any = scheduler.set_timesteps

    def set_released(num_inference_steps: int, **device: torch.device) -> None:
        levels = np.linspace(np.float32(0.999), 0, num_inference_steps + 1)[:-1]
        set_timesteps(sigmas=levels, **device)

    # WanPipeline takes no noise levels; it only ever asks its scheduler for a number of steps.
    scheduler.set_timesteps = set_released  # pyrefly: ignore[bad-assignment]
    return scheduler


def _fill_(model: nn.Module, tensors: TensorFiles, released_name: Callable[[str], str]) -> None:
    """Replace the model's parameters by the tensors, which have released names; CheckpointError when they differ."""
    names = {released_name(name): name for name, _ in model.named_parameters()}
    load_(model, tensors.renamed(names.__getitem__), device=CPU, dtype_of=lambda _: torch.float32, what="reference")
