"""One set of weights in every layout they are found in: each loads, and gives the same latents."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, VAE_FILE, find_checkpoint
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest

REQUEST = RenderRequest(prompt="A road in fog, 雾", width=64, height=32, num_frames=5, num_inference_steps=2, seed=1)
DIT_FILE = "diffusion_pytorch_model.safetensors"


def latents_of(path: Path, companions: Path | None = None) -> Tensor:
    return Renderer.from_checkpoint(path, companions=companions, dtype="float32", device="cpu")(REQUEST).latents


@pytest.fixture(scope="module")
def released_latents(debug_checkpoint: Path) -> Tensor:
    return latents_of(debug_checkpoint)


def test_the_debug_checkpoint_has_the_goldens_tensors(
    debug_checkpoint: Path, golden_json: Callable[[str], dict]
) -> None:
    files = {
        "t2v": load_file(debug_checkpoint / DIT_FILE),
        "vae": torch.load(debug_checkpoint / VAE_FILE, weights_only=True),
        "t5": torch.load(debug_checkpoint / TEXT_ENCODER_FILE, weights_only=True),
    }
    wanted = golden_json("tiny_a")
    for part, tensors in files.items():
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == wanted[part]


def test_a_pipeline_saved_by_diffusers_gives_the_same_latents(
    debug_checkpoint: Path, released_latents: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_pipeline

    diffusers_pipeline(find_checkpoint(debug_checkpoint), flow_shift=5.0).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert find_checkpoint(tmp_path).layout == "diffusers"
    assert torch.equal(latents_of(tmp_path), released_latents)


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_give_the_same_latents_with_an_index_and_without(
    released_latents: Tensor, tmp_path: Path, with_index: bool
) -> None:
    write_debug_checkpoint(tmp_path, num_shards=3)
    assert len(list(tmp_path.glob("*-of-00003.safetensors"))) == 3
    if not with_index:
        (tmp_path / f"{DIT_FILE}.index.json").unlink()
    assert torch.equal(latents_of(tmp_path), released_latents)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_lone_dit_file_with_companions_gives_the_same_latents(
    debug_checkpoint: Path, released_latents: Tensor, tmp_path: Path, prefix: str
) -> None:
    tensors = load_file(debug_checkpoint / DIT_FILE)
    file = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
    assert find_checkpoint(file, debug_checkpoint).layout == "single file"
    assert torch.equal(latents_of(file, debug_checkpoint), released_latents)


def test_tensors_of_several_dtypes_in_one_file_are_read_as_one(debug_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(debug_checkpoint / DIT_FILE)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    mixed = {name: tensor.to(dtypes[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}
    for folder, stored in (("mixed", mixed), ("float32", {name: t.float() for name, t in mixed.items()})):
        copytree(debug_checkpoint, tmp_path / folder)
        save_file(stored, tmp_path / folder / DIT_FILE)
    assert torch.equal(latents_of(tmp_path / "mixed"), latents_of(tmp_path / "float32"))


def test_heads_of_another_width_than_the_released_are_read_from_the_config(
    debug_checkpoint: Path, tmp_path: Path
) -> None:
    config = json.loads((debug_checkpoint / "config.json").read_text())
    copytree(debug_checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "num_heads": 2}))
    assert find_checkpoint(debug_checkpoint).check().num_heads == 4
    assert find_checkpoint(tmp_path / "copy").check().num_heads == 2
