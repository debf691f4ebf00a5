"""Adapters against diffusers' own loading and fusing, against PEFT's branches."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wan_ray.model.checkpoint import dit_architecture, find_checkpoint
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.lora import Adapter, fit, merged
from wan_ray.model.weights import TensorFiles, load_

pytest.importorskip("diffusers")
pytest.importorskip("peft")

CPU = torch.device("cpu")
RANK = 4
RelativeError = Callable[[Tensor, Tensor], float]
Spelling = Callable[[dict[str, tuple[Tensor, Tensor]]], dict[str, Tensor]]

TOKENS = torch.randn(9, 4096, generator=torch.Generator().manual_seed(1))
LATENTS = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(2))
DIFFUSERS_LAYERS = {
    **{
        f"{ours}.{x}": f"{theirs}.to_{x}"
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for x in "qkv"
    },
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
BLOCK_LINEARS = [f"blocks.{i}.{layer}" for i in range(3) for layer in DIFFUSERS_LAYERS]


@pytest.fixture(scope="module")
def base(debug_checkpoint: Path) -> TensorFiles:
    return find_checkpoint(debug_checkpoint).open_dit()


@pytest.fixture
def theirs(debug_checkpoint: Path) -> nn.Module:
    """diffusers' transformer, new for each test: adapters change it."""
    from wan_ray.diffusers_reference import diffusers_transformer

    return diffusers_transformer(find_checkpoint(debug_checkpoint))


def pairs(base: TensorFiles, *, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up matrices for every linear layer of every block."""
    random = torch.Generator().manual_seed(seed)
    shapes = {module: base.shapes[f"{module}.weight"] for module in BLOCK_LINEARS}
    return {
        module: (
            0.3 * torch.randn(RANK, inner, generator=random),
            0.3 * torch.randn(outer, RANK, generator=random),
        )
        for module, (outer, inner) in shapes.items()
    }


def diffusers_style(matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors = {}
    for module, (down, up) in matrices.items():
        _, block, layer = module.split(".", 2)
        name = f"transformer.blocks.{block}.{DIFFUSERS_LAYERS[layer]}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def original_style(matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors = {}
    for module, (down, up) in matrices.items():
        name = f"diffusion_model.{module}"
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def distilled_style(matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """As the lightx2v adapters: down and up, alphas, and full differences of biases."""
    tensors = {}
    for i, (module, (down, up)) in enumerate(matrices.items()):
        name = f"diffusion_model.{module}"
        bias = torch.randn(len(up), generator=torch.Generator().manual_seed(i))
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(2.0 + i % 3),
            f"{name}.diff_b": 0.2 * bias,
        }
    return tensors


def kohya_style(matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    tensors = {}
    for i, (module, (down, up)) in enumerate(matrices.items()):
        name = f"lora_unet_{module.replace('.', '_')}"
        alpha = torch.tensor(1.0 + i % 5)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    return tensors


@torch.inference_mode()
def our_velocity(base: TensorFiles, adapters: Mapping[Path, float]) -> Tensor:
    fitted = [fit(Adapter(path=path, scale=scale), base.shapes) for path, scale in adapters.items()]
    tensors = merged(base, fitted, device=CPU)
    with torch.device("meta"):
        model = DiT(dit_architecture(tensors.shapes, config_heads=4))
    load_(model, tensors, device=CPU, dtype_of=lambda name: parameter_dtype(name, torch.float32), what="DiT")
    return model(LATENTS, 637, model.encode_context(TOKENS))


@torch.inference_mode()
def their_velocity(model: nn.Module) -> Tensor:
    padded = torch.cat([TOKENS, torch.zeros(512 - len(TOKENS), 4096)])[None]
    timestep = torch.tensor([637])
    return model(hidden_states=LATENTS, timestep=timestep, encoder_hidden_states=padded, return_dict=False)[0]


def pipeline(transformer: nn.Module):
    """diffusers' pipeline around a transformer alone: its loading of adapters needs no more."""
    from diffusers import WanPipeline

    return WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=transformer)


@pytest.mark.parametrize("spelling", [diffusers_style, original_style, distilled_style, kohya_style])
def test_a_merged_adapter_gives_what_diffusers_gives_after_loading_and_fusing_it(
    base: TensorFiles, theirs: nn.Module, tmp_path: Path, relative_error: RelativeError, spelling: Spelling
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(spelling(pairs(base)), file)
    plain = their_velocity(theirs)
    loaded = pipeline(theirs)
    loaded.load_lora_weights(tmp_path, weight_name=file.name)
    loaded.fuse_lora(lora_scale=0.7)
    wanted = their_velocity(theirs)
    assert relative_error(our_velocity(base, {file: 0.7}), wanted) < 1e-5 < 0.1 < relative_error(plain, wanted)


def test_two_adapters_with_scales_give_what_diffusers_gives_with_both_set(
    base: TensorFiles, theirs: nn.Module, tmp_path: Path, relative_error: RelativeError
) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(kohya_style(pairs(base)), first)
    save_file(distilled_style(pairs(base, seed=3)), second)
    loaded = pipeline(theirs)
    for file in (first, second):
        loaded.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=file.stem)
    loaded.set_adapters([first.stem, second.stem], [0.5, -0.8])
    assert relative_error(our_velocity(base, {first: 0.5, second: -0.8}), their_velocity(theirs)) < 1e-5


def test_adapters_that_peft_made_and_saved_give_peft_s_own_velocities(
    base: TensorFiles, theirs: nn.Module, tmp_path: Path, relative_error: RelativeError
) -> None:
    """The convolution too. Saved by PEFT, with a config beside, and by diffusers, with the config in the header."""
    import peft
    from diffusers import WanPipeline

    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=6,
        use_rslora=True,
        alpha_pattern={"attn2.to_v": 3},
        rank_pattern={"ffn.net.2": 2},
        init_lora_weights=False,
        target_modules=["patch_embedding", "to_q", "to_v", "to_out.0", "ffn.net.2", "proj_out", "time_proj"],
    )
    torch.manual_seed(0)
    adapted = peft.get_peft_model(theirs, config)
    wanted = their_velocity(adapted)
    adapted.save_pretrained(tmp_path / "peft")
    layers = peft.get_peft_model_state_dict(adapted)
    WanPipeline.save_lora_weights(
        tmp_path / "diffusers",
        transformer_lora_layers={key.removeprefix("base_model.model."): value for key, value in layers.items()},
        transformer_lora_adapter_metadata=json.loads((tmp_path / "peft" / "adapter_config.json").read_text()),
    )
    for file in ("peft/adapter_model.safetensors", "diffusers/pytorch_lora_weights.safetensors"):
        assert relative_error(our_velocity(base, {tmp_path / file: 1.0}), wanted) < 1e-5, file
