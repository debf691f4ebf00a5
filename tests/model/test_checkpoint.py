import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from wan_ray.errors import CheckpointError
from wan_ray.model.checkpoint import (
    TEXT_ENCODER_FILE,
    TOKENIZER_FOLDER,
    VAE_FILE,
    dit_architecture,
    find_checkpoint,
)
from wan_ray.model.debug import DebugSizes, write_debug_checkpoint
from wan_ray.variants import VARIANTS, DiTArchitecture

CPU = torch.device("cpu")
DIT_FILE = "diffusion_pytorch_model.safetensors"
SHARD = "diffusion_pytorch_model-0000{}-of-00003.safetensors"


@pytest.fixture
def folder(debug_checkpoint, tmp_path):
    """A checkpoint of this test's own, to be damaged."""
    return shutil.copytree(debug_checkpoint, tmp_path / "checkpoint")


@pytest.fixture
def sharded(tmp_path):
    write_debug_checkpoint(tmp_path / "sharded", num_shards=3)
    return tmp_path / "sharded"


def change_dit(folder, **changed):
    tensors = {**load_file(folder / DIT_FILE), **changed}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / DIT_FILE)


def refusal(path, companions=None):
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(path, companions).check()
    return str(caught.value)


def dit_state(checkpoint):
    return checkpoint.load_dit(dtype=torch.float32, device=CPU)[0].state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_released_layout_is_found_and_checked_without_reading_weights(folder):
    checkpoint = find_checkpoint(folder)
    assert checkpoint.layout == "released"
    assert checkpoint.check() == DebugSizes().dit


def test_weights_load_as_the_file_holds_them(folder):
    assert same(dit_state(find_checkpoint(folder)), load_file(folder / DIT_FILE))


def test_what_decides_the_residual_stream_s_precision_stays_float32(folder):
    model, _ = find_checkpoint(folder).load_dit(dtype=torch.bfloat16, device=CPU)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["blocks.0.self_attn.q.weight"] == dtypes["text_embedding.0.weight"] == torch.bfloat16
    assert dtypes["blocks.0.modulation"] == dtypes["head.head.weight"] == torch.float32
    assert {p.dtype for p in find_checkpoint(folder).load_vae(device=CPU)[0].parameters()} == {torch.float32}


def test_shards_with_and_without_an_index_are_the_one_file(folder, sharded):
    whole = dit_state(find_checkpoint(folder))
    assert same(dit_state(find_checkpoint(sharded)), whole)
    (sharded / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert same(dit_state(find_checkpoint(sharded)), whole)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("with_index", [True, False])
def test_a_missing_shard_is_named(sharded, number, with_index):
    (sharded / SHARD.format(number)).unlink()
    if not with_index:
        (sharded / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert refusal(sharded) == f"{str(sharded / SHARD.format(number))!r} is missing from the checkpoint"


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_is_none_is_named(sharded, content):
    index = sharded / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(content)
    assert refusal(sharded) == f"{str(index)!r} is no index of weight files; download it again"


@pytest.mark.parametrize("part", [TEXT_ENCODER_FILE, VAE_FILE, TOKENIZER_FOLDER, f"{TOKENIZER_FOLDER}/tokenizer.json"])
def test_a_missing_part_is_named(folder, part):
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refusal(folder).startswith(f"{str(path)!r} is missing")


def test_a_folder_without_a_denoiser_says_what_it_looked_for(folder, tmp_path):
    (folder / DIT_FILE).unlink()
    assert refusal(folder) == (
        f"{str(folder / DIT_FILE)!r} is missing, and there are no shards "
        "diffusion_pytorch_model-*-of-*.safetensors beside it"
    )
    assert refusal(tmp_path / "none").endswith("does not exist; give a folder or a DiT .safetensors file")


def test_missing_extra_and_misshaped_tensors_of_the_denoiser_are_named(folder):
    change_dit(
        folder,
        **{
            "blocks.1.norm3.bias": None,
            "blocks.1.norm4.bias": torch.ones(96),
            "blocks.2.self_attn.q.bias": torch.ones(95),
        },
    )
    assert refusal(folder) == (
        "the DiT does not fit its weights: missing blocks.1.norm3.bias; extra blocks.1.norm4.bias; "
        "misshaped blocks.2.self_attn.q.bias [95] instead of [96]"
    )


@pytest.mark.parametrize(
    ("file", "tensor", "part"),
    [
        (TEXT_ENCODER_FILE, "blocks.1.attn.o.weight", "text encoder"),
        (TEXT_ENCODER_FILE, "token_embedding.weight", "text encoder"),
        (VAE_FILE, "decoder.middle.0.residual.2.bias", "VAE"),
    ],
)
def test_a_missing_tensor_of_another_part_is_named(folder, file, tensor, part):
    tensors = torch.load(folder / file, weights_only=True)
    del tensors[tensor]
    torch.save(tensors, folder / file)
    message = refusal(folder)
    assert part in message or tensor in message


def test_weights_of_something_else_are_told(folder):
    save_file({"a": torch.ones(1)}, folder / DIT_FILE)
    assert refusal(folder) == "not a Wan2.1 DiT: tensor 'patch_embedding.weight' is missing"
    save_file({"patch_embedding.weight": torch.ones(1)}, folder / DIT_FILE)
    assert refusal(folder).startswith("not a Wan2.1 DiT: a tensor has another rank or name")


def test_a_width_that_tells_no_head_width_needs_its_config(folder):
    expected = (
        "DiT width 96 is not a multiple of 128, and no config.json of that width gives num_heads; "
        "put the model's config.json beside its weights"
    )
    (folder / "config.json").unlink()
    assert refusal(folder) == expected


@pytest.mark.parametrize(
    "content",
    [
        *("", "not JSON", "[]", "null", '"text"', '{"num_heads": "four"}', '{"dim": 16, "num_heads": [1, 2]}'),
        *('{"dim": 96}', '{"dim": 96, "num_heads": -4}', '{"dim": 1536, "num_heads": 12}', "\udcff"),
    ],
)
def test_a_garbage_config_is_ignored(folder, content):
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert refusal(folder).startswith("DiT width 96 is not a multiple of 128")


def test_heads_of_a_config_must_divide_the_width(folder):
    (folder / "config.json").write_text('{"dim": 96, "num_heads": 5}')
    assert refusal(folder) == "config.json: num_heads=5 does not divide the DiT's width 96; mend it"


def test_released_sizes_are_read_from_shapes_whatever_the_config_says(released_shapes, tmp_path):
    for name in ("t2v-1.3B", "t2v-14B"):
        assert dit_architecture(released_shapes(name)) == VARIANTS[name].architecture


def test_a_lone_denoiser_takes_the_other_parts_from_its_companions(folder, tmp_path):
    lone = tmp_path / "finetune.safetensors"
    (folder / DIT_FILE).rename(lone)  # so the companions have text encoder, VAE and config alone
    checkpoint = find_checkpoint(lone, folder)
    assert checkpoint.layout == "single file"
    assert checkpoint.check() == DebugSizes().dit
    assert refusal(lone) == (
        f"{str(lone)!r} holds a DiT alone; name a folder with text encoder and VAE as model.companions"
    )
    assert refusal(lone, tmp_path / "none").startswith(f"model.companions {str(tmp_path / 'none')!r} does not exist")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_a_lone_denoiser_may_have_a_prefix(folder, tmp_path, prefix):
    tensors = load_file(folder / DIT_FILE)
    lone = tmp_path / "comfy.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, lone)
    assert same(dit_state(find_checkpoint(lone, folder)), tensors)


def test_a_denoiser_of_another_width_than_its_companions_ignores_their_config(folder, tmp_path):
    sizes = DebugSizes(dit=DiTArchitecture(dim=128, ffn_dim=64, num_heads=1, num_layers=1, frequency_dim=32))
    write_debug_checkpoint(tmp_path / "other", sizes=sizes)
    assert find_checkpoint(tmp_path / "other" / DIT_FILE, folder).check() == sizes.dit


def test_each_part_s_fingerprint_follows_its_own_weights_alone(folder):
    def fingerprints():
        checkpoint = find_checkpoint(folder)
        return (
            checkpoint.load_dit(dtype=torch.float32, device=CPU)[1],
            checkpoint.load_dit(dtype=torch.bfloat16, device=CPU)[1],
            checkpoint.load_vae(device=CPU)[1],
            checkpoint.load_text_encoder(dtype=torch.float32, device=CPU)[1],
        )

    before = fingerprints()
    assert before == fingerprints()
    assert before[0] == before[1]
    change_dit(folder, **{"blocks.2.norm3.bias": torch.full((96,), 0.5)})
    after = fingerprints()
    assert after[0] != before[0] and after[2:] == before[2:]


def test_the_debug_checkpoint_says_its_sizes_in_the_release_s_words(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["dim"], config["num_heads"], config["freq_dim"], config["model_type"]) == (96, 4, 32, "t2v")
