import pytest
import torch
from safetensors.torch import save_file

from wan_ray.config import ModelSection
from wan_ray.errors import CheckpointError, ConfigError
from wan_ray.stages.loader import StageLoader, variant_of
from wan_ray.variants import VARIANTS


def loader_of(folder, **fields):
    section = {"variant": "debug", "checkpoint": str(folder), "device": "cpu", **fields}
    return StageLoader(model=ModelSection.model_validate(section))


def test_a_sound_checkpoint_passes_the_check(debug_checkpoint):
    loader_of(debug_checkpoint).check()


@pytest.mark.parametrize("act", [StageLoader.check, StageLoader.denoise])
def test_a_checkpoint_of_another_variant_is_told_with_its_sizes(debug_checkpoint, act):
    with pytest.raises(CheckpointError) as caught:
        act(loader_of(debug_checkpoint, variant="t2v-1.3B"))
    assert str(caught.value) == (
        "the checkpoint is not model.variant='t2v-1.3B': dim 96 instead of 1536, ffn_dim 128 instead of 8960, "
        "num_heads 4 instead of 12, num_layers 3 instead of 30, frequency_dim 32 instead of 256"
    )


def test_a_released_variant_is_recognised_by_its_sizes():
    assert [variant_of(v.architecture) for v in VARIANTS.values() if v.architecture] == [
        "t2v-1.3B",
        "t2v-14B",
        "i2v-14B-480P",
        "i2v-14B-480P",  # i2v-14B-720P has the same sizes
        "flf2v-14B",
        "vace-1.3B",
        "vace-14B",
    ]


def test_a_dtype_may_be_chosen_and_is_float32_on_a_cpu(debug_checkpoint):
    assert loader_of(debug_checkpoint).dtype == torch.float32
    assert loader_of(debug_checkpoint, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(debug_checkpoint):
    with pytest.raises(ConfigError, match=r"model\.device='cuda', but no GPU is visible here"):
        loader_of(debug_checkpoint, device="cuda").encode()


def test_a_checkpoint_at_a_url_is_the_folder_it_was_copied_from(debug_checkpoint, tmp_path, encode, make_item):
    remote = loader_of(debug_checkpoint.as_uri(), cache_dir=str(tmp_path / "cache"))
    staged = remote.encode()
    assert staged.fingerprint == encode.fingerprint
    item = make_item(prompt="雪夜")
    assert torch.equal(staged(item).tensors["context"], encode(item).tensors["context"])


def test_adapters_are_merged_as_the_weights_load_and_tell_in_the_fingerprint(debug_checkpoint, tmp_path):
    """A rank-1 adapter of ones on one layer: its weight grows by scale everywhere."""
    file = tmp_path / "adapter.safetensors"
    layer = "diffusion_model.blocks.0.ffn.0"
    save_file({f"{layer}.lora_down.weight": torch.ones(1, 96), f"{layer}.lora_up.weight": torch.ones(128, 1)}, file)
    plain = loader_of(debug_checkpoint).denoise()
    adapted = loader_of(debug_checkpoint, adapters=[{"path": str(file), "scale": 0.5}])
    adapted.check()
    stage = adapted.denoise()
    before, after = plain.model.blocks[0].ffn[0].weight, stage.model.blocks[0].ffn[0].weight
    torch.testing.assert_close(after, before + 0.5)
    assert stage.fingerprint != plain.fingerprint


def test_an_adapter_for_something_else_is_refused_before_a_run_starts(debug_checkpoint, tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"unet.down.0.lora_down.weight": torch.ones(1, 4), "unet.down.0.lora_up.weight": torch.ones(4, 1)}, file)
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        loader_of(debug_checkpoint, adapters=[{"path": str(file)}]).check()
