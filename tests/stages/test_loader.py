import pytest
import torch

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
    assert [variant_of(v.architecture) for v in VARIANTS.values() if v.architecture] == ["t2v-1.3B", "t2v-14B"]


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
