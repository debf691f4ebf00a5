import json
import shutil
import struct
import time
import uuid
from math import prod

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from wan_ray.cli import INVALID, OK, main
from wan_ray.errors import CheckpointError
from wan_ray.inspect_checkpoint import describe, inspect_checkpoint
from wan_ray.model.checkpoint import TEXT_ENCODER_FILE, TOKENIZER_FOLDER, VAE_FILE, find_checkpoint
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.image_encoder import IMAGE_ENCODER_FILE

KINDS = ("t2v", "i2v", "flf2v", "vace")
DIT_FILE = "diffusion_pytorch_model.safetensors"
# Of the release: parameters of the DiT, as published and counted, and the folders that have them.
RELEASED = {
    "t2v-1.3B": ("t2v-1.3B", 1_418_996_800),
    "t2v-14B": ("t2v-14B", 14_288_491_584),
    "i2v-14B-480P": ("i2v-14B", 16_394_878_784),
    "i2v-14B-720P": ("i2v-14B", 16_394_878_784),
    "flf2v-14B": ("flf2v-14B", 16_395_536_704),
    "vace-1.3B": ("vace-1.3B", 2_153_972_032),
    "vace-14B": ("vace-14B", 17_337_592_896),
}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A debug checkpoint of each kind, not to be changed."""
    root = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_debug_checkpoint(root / kind, kind=kind, num_shards=3 if kind == "vace" else 1)
    return root


@pytest.fixture
def folder(folders, tmp_path):
    """A checkpoint of this test's own, to be damaged."""
    return shutil.copytree(folders / "i2v", tmp_path / "checkpoint")


def part(found, name):
    return next(part for part in found.parts if part.name == name)


def write_holes(file, shapes, dtype_of):
    """A safetensors file of these tensors whose values are a hole: it takes next to no room."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + prod(shape) * BYTES[dtype_of(name)]
        header[name] = {"dtype": dtype_of(name), "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + at)


def write_released(folder, released_shapes, model, *, num_shards=7, dtype_of=lambda _: "F32", clip=True):
    """A -Diffusers folder of the released sizes, the DiT in shards."""
    shapes = released_shapes(model)
    names = sorted(shapes)
    for shard in range(num_shards):
        part = names[shard * len(names) // num_shards : (shard + 1) * len(names) // num_shards]
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        write_holes(folder / "transformer" / file, {name: shapes[name] for name in part}, dtype_of)
    write_holes(folder / "vae" / DIT_FILE, released_shapes("vae"), lambda _: "F32")
    write_holes(folder / "text_encoder" / "model.safetensors", released_shapes("umt5-xxl"), lambda _: "BF16")
    if clip:
        write_holes(folder / "image_encoder" / "model.safetensors", released_shapes("clip"), lambda _: "F16")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_debug_checkpoint_is_told_by_its_kind_and_the_released_model_it_is_like(folders, kind):
    found = inspect_checkpoint(str(folders / kind))
    closest = {"t2v": "t2v-1.3B", "i2v": "i2v-14B-480P", "flf2v": "flf2v-14B", "vace": "vace-1.3B"}
    assert (found.layout, found.variants, found.closest, found.is_usable) == ("released", (), closest[kind], True)
    assert "num_layers 3 instead of" in "; ".join(found.differing)
    assert f"'debug{'' if kind == 't2v' else f'-{kind}'}' takes any sizes" in describe(found)
    assert [p.name for p in found.parts] == ["DiT", "umT5", "VAE", *(["CLIP"] if kind in ("i2v", "flf2v") else [])]
    assert part(found, "DiT").num_files == (3 if kind == "vace" else 1)
    assert {p.name: list(p.stored) for p in found.parts[:3]} == {
        "DiT": ["float32"],
        "umT5": ["bfloat16"],
        "VAE": ["float32"],
    }


def test_memory_is_what_the_loaded_models_take(folders):
    found, checkpoint = inspect_checkpoint(str(folders / "i2v")), find_checkpoint(folders / "i2v")
    cpu = torch.device("cpu")
    loaded = {
        "DiT": checkpoint.load_dit(dtype=torch.bfloat16, device=cpu)[0],
        "umT5": checkpoint.load_text_encoder(dtype=torch.bfloat16, device=cpu)[0],
        "VAE": checkpoint.load_vae(device=cpu)[0],
        "CLIP": checkpoint.load_image_encoder(dtype=torch.float32, device=cpu)[0],
    }
    taken = {name: sum(p.nbytes for p in model.parameters()) for name, model in loaded.items()}
    assert {p.name: p.gpu_bytes for p in found.parts} == taken
    assert found.resident_bytes == sum(taken.values()) + taken["VAE"]  # the encode and the decode stage have one each
    assert part(found, "DiT").cpu_bytes == sum(4 * p.numel() for p in loaded["DiT"].parameters())


@pytest.mark.parametrize("variant", RELEASED)
def test_each_released_model_is_known_by_its_headers_alone(released_shapes, tmp_path, variant):
    model, num_parameters = RELEASED[variant]
    folder = write_released(tmp_path / f"Wan2.1-{variant.upper()}-Diffusers", released_shapes, model)
    started = time.process_time()
    found = inspect_checkpoint(str(folder))
    seconds = time.process_time() - started
    print(f"inspected {variant} in {seconds:.2f} s")  # noqa: T201
    assert (found.layout, found.variants[0], found.is_usable) == ("diffusers", variant, True)
    dit = part(found, "DiT")
    assert dit.num_parameters == num_parameters == sum(map(prod, released_shapes(model).values()))
    assert (dit.num_files, dit.cpu_bytes) == (7, 4 * num_parameters)
    assert 2 * num_parameters < dit.gpu_bytes < 2.2 * num_parameters
    # The release's file of umT5 is 11,361,920,418 bytes, of the VAE 507,609,880.
    assert part(found, "umT5").gpu_bytes == pytest.approx(11_361_920_418, rel=1e-4)
    assert part(found, "VAE").gpu_bytes == pytest.approx(507_609_880, rel=1e-3)
    assert seconds < 5


def test_a_resolution_that_only_a_name_tells_is_taken_from_the_name_or_left_open(released_shapes, tmp_path):
    folder = write_released(tmp_path / "mine", released_shapes, "i2v-14B")
    found = inspect_checkpoint(str(folder))
    assert found.variants == ("i2v-14B-480P", "i2v-14B-720P")
    assert "i2v-14B-480P or i2v-14B-720P, which have the same sizes" in describe(found)
    named = inspect_checkpoint(str(folder.rename(tmp_path / "Wan2.1-I2V-14B-720P")))
    assert "variant     i2v-14B-720P by its name; i2v-14B-480P has the same sizes" in describe(named)


def test_a_14b_model_fits_gpus_of_80_gb_whole_and_of_40_gb_alone(released_shapes, tmp_path):
    """bfloat16: 2 x 17.3 GB of DiT and what stays float32, 11.4 GB of umT5, two VAEs of 0.5 GB."""
    said = describe(inspect_checkpoint(str(write_released(tmp_path / "a", released_shapes, "vace-14B", clip=False))))
    assert "all stages 47.43 GB, held by a GPU of 80 GB or more" in said
    assert "the DiT alone 35.05 GB, held by a GPU of 40 GB or more" in said
    assert "17,337,592,896  float32" in said


def test_several_dtypes_in_one_part_are_told_with_their_shares(released_shapes, tmp_path):
    """VACE-1.3B: the T2V part 1,418,996,800 parameters in float32, the rest in bfloat16."""
    folder = write_released(
        tmp_path / "a",
        released_shapes,
        "vace-1.3B",
        num_shards=1,
        dtype_of=lambda name: "BF16" if name.startswith("vace_") else "F32",
    )
    found = inspect_checkpoint(str(folder))
    assert part(found, "DiT").stored == {"float32": 1_418_996_800, "bfloat16": 2_153_972_032 - 1_418_996_800}
    assert "float32 65.9%, bfloat16 34.1%" in describe(found)


def test_float8_is_told(released_shapes, tmp_path):
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in released_shapes("t2v-14B").items()}
    write_holes(tmp_path / "wan2.1_t2v_14B_fp8_e4m3fn.safetensors", shapes, lambda _: "F8_E4M3")
    found = inspect_checkpoint(str(tmp_path / "wan2.1_t2v_14B_fp8_e4m3fn.safetensors"))
    assert (found.variants, part(found, "DiT").stored) == (("t2v-14B",), {"float8_e4m3fn": 14_288_491_584})


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "VaceWanModel", "dim": 16, "text_len": [1, 2, 2], "num_layers": 16, "model_type": "vace"},
        {"_class_name": "WanModel", "model_type": "t2v", "dim": 5120, "num_heads": 40, "num_layers": 40},
    ],
)
def test_a_config_that_misleads_is_ignored_and_told(released_shapes, tmp_path, config):
    folder = write_released(tmp_path / "a", released_shapes, "vace-14B")
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    found = inspect_checkpoint(str(folder))
    assert found.variants == ("vace-14B",)
    assert found.ignored
    if config["dim"] == 16:
        assert found.ignored == ("dim 16 instead of 5120", "num_layers 16 instead of 40")
    else:
        assert found.ignored == ("model_type 't2v' instead of 'vace'",)
    assert "ignored where the tensors say otherwise" in describe(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_debug_configs_mislead_nobody(folders, kind):
    assert inspect_checkpoint(str(folders / kind)).ignored == ()


@pytest.mark.parametrize("kind", KINDS)
def test_what_diffusers_saves_in_shards_is_the_same_model(folders, tmp_path, kind):
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_transformer, diffusers_vae

    checkpoint = find_checkpoint(folders / kind)
    diffusers_transformer(checkpoint).save_pretrained(tmp_path / "d" / "transformer", max_shard_size="1MB")
    diffusers_vae(checkpoint).save_pretrained(tmp_path / "d" / "vae")
    encoder, _ = checkpoint.load_text_encoder(dtype=torch.bfloat16, device=torch.device("cpu"))
    encoder.save_pretrained(tmp_path / "d" / "text_encoder", max_shard_size="4MB")
    shutil.copytree(folders / kind / TOKENIZER_FOLDER, tmp_path / "d" / "tokenizer")
    found, original = inspect_checkpoint(str(tmp_path / "d")), inspect_checkpoint(str(folders / kind))
    assert (found.layout, found.architecture) == ("diffusers", original.architecture)
    assert part(found, "DiT").num_files > 1
    for one, other in zip(found.parts, original.parts, strict=False):
        assert (one.name, one.stored, one.fault) == (other.name, other.stored, None)
    assert set(found.missing) == ({"CLIP"} if kind in ("i2v", "flf2v") else set())
    assert found.ignored == ()


@pytest.mark.parametrize(
    ("removed", "missing", "prevented"),
    [
        (DIT_FILE, "DiT", "nothing can be rendered"),
        (TEXT_ENCODER_FILE, "umT5", "no prompt can be encoded"),
        (VAE_FILE, "VAE", "no latents can be decoded"),
        (IMAGE_ENCODER_FILE, "CLIP", "no image can be encoded, and each row of this model has one"),
        (f"{TOKENIZER_FOLDER}/tokenizer.json", "tokenizer", "no prompt can be encoded"),
        (TOKENIZER_FOLDER, "tokenizer", "no prompt can be encoded"),
    ],
)
def test_what_is_missing_is_told_with_what_it_prevents(folder, removed, missing, prevented):
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = inspect_checkpoint(str(folder))
    assert (list(found.missing), found.is_usable) == ([missing], False)
    (line,) = [line for line in describe(found).splitlines() if line.startswith("missing")]
    assert f"{missing}: {prevented}; " in line
    assert removed.split("/")[0] in line


def test_parts_that_do_not_fit_or_are_cut_short_are_told(folder):
    tensors = load_file(folder / DIT_FILE)
    del tensors["blocks.1.norm3.bias"]
    save_file(tensors, folder / DIT_FILE)
    (folder / VAE_FILE).write_bytes((folder / VAE_FILE).read_bytes()[:5000])
    found = inspect_checkpoint(str(folder))
    assert not found.is_usable
    assert "missing blocks.1.norm3.bias" in part(found, "DiT").fault
    assert "is cut short" in part(found, "VAE").fault
    assert part(found, "umT5").fault is None
    assert [line.split(":")[0] for line in describe(found).splitlines() if line.startswith("broken")] == [
        "broken      DiT",
        "broken      VAE",
    ]


def test_a_lone_dit_says_what_it_takes_besides(folders):
    file = folders / "t2v" / DIT_FILE
    found = inspect_checkpoint(str(file), str(folders / "t2v"))
    assert (found.layout, found.is_usable) == ("single file", True)
    lone = inspect_checkpoint(str(file))
    assert list(lone.missing) == ["umT5", "VAE", "tokenizer"]
    assert "missing     VAE: no latents can be decoded; name a folder that has it: --companions" in describe(lone)
    assert part(lone, "DiT").num_parameters == part(found, "DiT").num_parameters
    assert "no config.json of that width gives num_heads" in part(lone, "DiT").fault


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["diffusion_model.blocks.0.ffn.0.lora_down.weight", "diffusion_model.patch_embedding.lora_down.weight"],
            "LoRA",
        ),
        (["transformer.blocks.0.attn1.to_q.lora_A.weight"], "LoRA"),
        (["lora_unet_blocks_0_ffn_0.lora_up.weight"], "LoRA"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight"], "VAE"),
        (["vision_model.embeddings.patch_embedding.weight"], "CLIP"),
        (["model.layers.0.mlp.weight"], "no model of Wan2.1: it has 1 tensors, such as 'model.layers.0.mlp.weight'"),
        ([], "no model of Wan2.1: it has 0 tensors"),
    ],
)
def test_a_file_of_another_model_is_told_by_what_it_is(tmp_path, names, what):
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"a.safetensors' is (a )?{what}"):
        inspect_checkpoint(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("file", "what"), [(VAE_FILE, "a VAE"), (TEXT_ENCODER_FILE, "a text encoder"), (IMAGE_ENCODER_FILE, "CLIP")]
)
def test_another_part_of_a_checkpoint_is_told_by_what_it_is(folders, file, what):
    with pytest.raises(CheckpointError, match=f"is {what}; give the folder that it and a DiT are in"):
        inspect_checkpoint(str(folders / "i2v" / file))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".txt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html>", bytes(1000)])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, suffix, content):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        inspect_checkpoint(str(file))
    assert str(file) in str(caught.value)


def test_a_git_lfs_pointer_is_told(folder):
    (folder / DIT_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "is a Git LFS pointer to one; run 'git lfs pull'" in part(inspect_checkpoint(str(folder)), "DiT").fault


def test_a_folder_of_something_else_is_told_with_what_it_holds(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no part of a Wan2\.1 checkpoint: it is empty"):
        inspect_checkpoint(str(tmp_path))
    for name in ("wan2.1_t2v.safetensors", "b", "c", "d", "e", "f", "g"):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointError, match="it has 'b', 'c', 'd', 'e', 'f' and 2 more; give a folder of the release"
    ):
        inspect_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="none' does not exist"):
        inspect_checkpoint(str(tmp_path / "none"))


def test_a_path_may_have_any_letters(folders, tmp_path):
    folder = shutil.copytree(folders / "t2v", tmp_path / "モデル ünï %20")
    assert inspect_checkpoint(str(folder)).is_usable


@pytest.fixture
def memory_url():
    folder = f"memory://{uuid.uuid4().hex}"
    yield folder
    fsspec.filesystem("memory").rm(folder.removeprefix("memory:/"), recursive=True)


def test_of_a_url_headers_alone_are_fetched(folders, memory_url, monkeypatch):
    filesystem, fetched = fsspec.filesystem("memory"), []
    filesystem.put(str(folders / "i2v"), memory_url.removeprefix("memory:/"), recursive=True)
    real = fsspec.implementations.memory.MemoryFile.read

    def counted(self, *args):
        data = real(self, *args)
        fetched.append(len(data))
        return data

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", counted)
    monkeypatch.setattr("wan_ray.inspect_checkpoint._HEAD_BYTES", 300_000)
    monkeypatch.setattr("wan_ray.inspect_checkpoint._TAIL_BYTES", 100_000)
    found, local = inspect_checkpoint(memory_url), inspect_checkpoint(str(folders / "i2v"))
    assert (found.parts, found.architecture, found.missing) == (local.parts, local.architecture, {})
    assert found.source == memory_url
    assert sum(fetched) < sum(file.stat().st_size for file in (folders / "i2v").rglob("*") if file.is_file()) / 20
    lone = inspect_checkpoint(f"{memory_url}/{DIT_FILE}", memory_url)
    assert (lone.parts, lone.layout) == (local.parts, "single file")


def test_what_is_wrong_with_a_url_is_told_by_the_url(folder, memory_url):
    filesystem = fsspec.filesystem("memory")
    (folder / VAE_FILE).unlink()
    (folder / DIT_FILE).write_bytes(b"hello")
    filesystem.put(str(folder), memory_url.removeprefix("memory:/"), recursive=True)
    found = inspect_checkpoint(memory_url)
    assert found.missing["VAE"] == f"'{memory_url}/{VAE_FILE}' is missing from the checkpoint"
    assert f"weight file '{memory_url}/{DIT_FILE}' cannot be read" in part(found, "DiT").fault
    with pytest.raises(CheckpointError, match=f"'{memory_url}/{DIT_FILE}' cannot be read"):
        inspect_checkpoint(f"{memory_url}/{DIT_FILE}")
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint '{memory_url}/none'"):
        inspect_checkpoint(f"{memory_url}/none")


def test_the_command_says_it_and_its_exit_code_whether_it_is_usable(folder, capsys):
    assert main(["inspect", str(folder)]) == OK
    assert capsys.readouterr().out.startswith(f"checkpoint  {folder}\nvariant     none released; 'debug-i2v'")
    (folder / VAE_FILE).unlink()
    assert main(["inspect", str(folder)]) == INVALID
    assert "missing     VAE" in capsys.readouterr().out
    assert main(["inspect", str(folder / "none")]) == INVALID
    assert capsys.readouterr().err.startswith("error: checkpoint ")
