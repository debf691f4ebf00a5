"""Adapters of every published spelling, merged into the debug checkpoint's weights."""

import json
import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from wan_ray.errors import CheckpointError
from wan_ray.model.checkpoint import dit_architecture, find_checkpoint
from wan_ray.model.dit import DiT, parameter_dtype
from wan_ray.model.lora import Adapter, fit, merged
from wan_ray.model.weights import TensorFiles, load_

CPU = torch.device("cpu")
RANK, ALPHA = 3, 6.0
QUERY = "blocks.1.self_attn.q"
LINEARS = [
    *(f"blocks.{i}.{a}.{p}" for i in range(3) for a in ("self_attn", "cross_attn") for p in "qkvo"),
    *(f"blocks.{i}.ffn.{p}" for i in range(3) for p in (0, 2)),
    *("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1", "head.head"),
]
DIFFUSERS = {
    "self_attn.q": "attn1.to_q",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "head.head": "proj_out",
    "time_projection.1": "condition_embedder.time_proj",
}
SPELLED = ["blocks.1.self_attn.q", "blocks.0.cross_attn.o", "blocks.2.ffn.0", "head.head", "time_projection.1"]


@pytest.fixture(scope="module")
def base(debug_checkpoint):
    return find_checkpoint(debug_checkpoint).open_dit()


def random(*shape, seed=0, scale=0.3):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pairs(base, modules, seed=0):
    """Down and up matrices for modules, by module."""
    shapes = {module: base.shapes[f"{module}.weight"] for module in modules}
    return {
        module: (random(RANK, *shape[1:], seed=seed + i), random(shape[0], RANK, seed=seed + 100 + i))
        for i, (module, shape) in enumerate(shapes.items())
    }


def spelled(matrices, form):
    """The pairs' tensors as files of a form name them; with alphas where the form has them."""

    def diffusers(module):
        for released, theirs in DIFFUSERS.items():
            module = module.replace(released, theirs)
        return module

    tensors = {}
    for module, (down, up) in matrices.items():
        down_key, up_key, alpha_key = {
            "diffusers": (*(f"transformer.{diffusers(module)}.lora_{x}.weight" for x in "AB"), None),
            "peft": (*(f"base_model.model.{diffusers(module)}.lora_{x}.default.weight" for x in "AB"), None),
            "bare": (*(f"{module}.lora_{x}.default.weight" for x in "AB"), None),
            "original": (*(f"diffusion_model.{module}.lora_{x}.weight" for x in "AB"), None),
            "original with alpha": tuple(
                f"diffusion_model.{module}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")
            ),
            "kohya": tuple(
                f"lora_unet_{module.replace('.', '_')}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")
            ),
        }[form]
        tensors |= {down_key: down, up_key: up}
        if alpha_key:
            tensors[alpha_key] = torch.tensor(ALPHA)
    return tensors


def write(tensors, file, metadata=None):
    save_file(tensors, file, metadata)
    return Adapter(path=file)


def merge(base, *adapters):
    return merged(base, [fit(adapter, base.shapes) for adapter in adapters], device=CPU)


def load(tensors, dtype=torch.float32):
    with torch.device("meta"):
        model = DiT(dit_architecture(tensors.shapes, config_heads=4))
    load_(model, tensors, device=CPU, dtype_of=lambda name: parameter_dtype(name, dtype), what="DiT")
    return model.eval()


@torch.inference_mode()
def velocity(model):
    context = model.encode_context(random(9, 4096, seed=1, scale=1))
    return model(random(1, 16, 3, 4, 6, seed=2, scale=1), 637, context)


def refusal(adapter, shapes):
    with pytest.raises(CheckpointError) as caught:
        fit(adapter, shapes)
    assert str(adapter.path) in str(caught.value)
    return str(caught.value)


def test_a_merged_adapter_is_the_same_as_a_branch_beside_every_linear_layer(base, tmp_path, relative_error):
    matrices = pairs(base, LINEARS)
    adapter = write(spelled(matrices, "original with alpha"), tmp_path / "a.safetensors")
    found = velocity(load(merge(base, Adapter(path=adapter.path, scale=0.7))))

    branched = load(base)
    without = velocity(branched)
    called = set()
    for name, module in branched.named_modules():
        if name in matrices:

            def branch(_, inputs, output, name=name):
                called.add(name)
                down, up = matrices[name]
                return output + 0.7 * (ALPHA / RANK) * F.linear(F.linear(inputs[0], down), up)

            assert isinstance(module, nn.Linear)
            module.register_forward_hook(branch)
    wanted = velocity(branched)
    assert called == set(LINEARS)
    assert relative_error(found, wanted) < 1e-5 < 0.1 < relative_error(without, wanted)


@pytest.mark.parametrize("up_shape", [(96, RANK), (96, RANK, 1, 1, 1)])
def test_a_convolution_s_adapter_is_two_convolutions_in_a_row(base, tmp_path, relative_error, up_shape):
    down, up = random(RANK, 16, 1, 2, 2), random(*up_shape, seed=1)
    adapter = write(spelled({"patch_embedding": (down, up)}, "original"), tmp_path / "a.safetensors")
    latents, stride = random(1, 16, 2, 4, 6, seed=2), (1, 2, 2)
    found = F.conv3d(latents, merge(base, adapter).read("patch_embedding.weight"), stride=stride)
    branch = F.conv3d(F.conv3d(latents, down, stride=stride), up.reshape(96, RANK, 1, 1, 1))
    wanted = F.conv3d(latents, base.read("patch_embedding.weight"), stride=stride) + branch
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("form", ["diffusers", "peft", "bare", "original", "original with alpha", "kohya"])
def test_every_spelling_changes_the_same_tensors_by_alpha_over_rank(base, tmp_path, form):
    matrices = pairs(base, SPELLED)
    adapter = write(spelled(matrices, form), tmp_path / "a.safetensors")
    tensors = merge(base, adapter)
    factor = ALPHA / RANK if form in ("original with alpha", "kohya") else 1.0
    assert tensors.shapes == base.shapes
    for name in base.shapes:
        module, _, leaf = name.rpartition(".")
        wanted = base.read(name)
        if module in matrices and leaf == "weight":
            down, up = matrices[module]
            wanted = wanted + factor * up @ down
        torch.testing.assert_close(tensors.read(name), wanted, rtol=1e-6, atol=1e-6, msg=name)


def test_full_differences_are_added_to_weights_biases_norms_and_modulation(base, tmp_path):
    changed = {
        "blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "blocks.2.norm3.diff": "blocks.2.norm3.weight",
        "blocks.2.norm3.diff_b": "blocks.2.norm3.bias",
        "blocks.1.ffn.2.diff_b": "blocks.1.ffn.2.bias",
        "blocks.1.diff_m": "blocks.1.modulation",
        "head.diff_m": "head.modulation",
        "head.head.diff": "head.head.weight",
        "patch_embedding.diff": "patch_embedding.weight",
        "patch_embedding.diff_b": "patch_embedding.bias",
    }
    differences = {key: random(*base.shapes[name], seed=i) for i, (key, name) in enumerate(changed.items())}
    file = tmp_path / "a.safetensors"
    write({f"diffusion_model.{key}": tensor for key, tensor in differences.items()}, file)
    tensors = merge(base, Adapter(path=file, scale=-0.5))
    for key, name in changed.items():
        torch.testing.assert_close(tensors.read(name), base.read(name) - 0.5 * differences[key], msg=name)
    assert fit(Adapter(path=file), base.shapes).terms.keys() == set(changed.values())


def test_several_adapters_add_up_each_with_its_scale(base, tmp_path):
    first, second = pairs(base, [QUERY]), pairs(base, [QUERY], seed=7)
    write(spelled(first, "kohya"), tmp_path / "a.safetensors")
    write(spelled(second, "diffusers"), tmp_path / "b.safetensors")
    scaled = [
        Adapter(path=tmp_path / "a.safetensors", scale=0.5),
        Adapter(path=tmp_path / "b.safetensors", scale=-2.0),
    ]
    (down, up), (second_down, second_up) = first[QUERY], second[QUERY]
    wanted = base.read(f"{QUERY}.weight") + 0.5 * (ALPHA / RANK) * up @ down - 2 * second_up @ second_down
    torch.testing.assert_close(merge(base, *scaled).read(f"{QUERY}.weight"), wanted)


def test_bfloat16_weights_are_merged_in_float32_and_rounded_once(base, tmp_path):
    stored = TensorFiles(base.shapes, lambda name: base.read(name).bfloat16(), "bfloat16")
    matrices = {QUERY: tuple(matrix.bfloat16() for matrix in pairs(base, [QUERY])[QUERY])}
    down, up = (matrix.float() for matrix in matrices[QUERY])
    norm = "blocks.0.self_attn.norm_q.weight"
    small = {"diffusion_model.blocks.0.self_attn.norm_q.diff": torch.full(base.shapes[norm], 1e-4).bfloat16()}
    adapter = write(spelled(matrices, "original") | small, tmp_path / "a.safetensors")
    model = load(merge(stored, adapter), torch.bfloat16)
    wanted = (stored.read(f"{QUERY}.weight").float() + up @ down).bfloat16()
    assert torch.equal(model.get_parameter(f"{QUERY}.weight"), wanted)
    kept = model.get_parameter(norm)
    assert kept.dtype == torch.float32
    assert torch.equal(kept, stored.read(norm).float() + small.popitem()[1].float())


@pytest.mark.parametrize(
    "settings, factor",
    [
        ({"r": RANK, "lora_alpha": 6}, 2.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
        ({"r": 8, "lora_alpha": 8, "alpha_pattern": {"^blocks.1.attn1.to_q": 9}}, 3.0),
        ({"r": 8, "lora_alpha": 3, "alpha_pattern": {"to_k": 9}}, 1.0),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_peft_s_own_alpha_is_honoured_in_the_header_and_beside_the_file(base, tmp_path, settings, factor, beside):
    tensors = spelled(pairs(base, [QUERY]), "peft" if beside else "diffusers")
    file = tmp_path / "adapter_model.safetensors"
    packed = {f"transformer.{key}": value for key, value in settings.items()}
    write(tensors, file, None if beside else {"lora_adapter_metadata": json.dumps(packed)})
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (term,) = fit(Adapter(path=file), base.shapes).terms[f"{QUERY}.weight"]
    assert term.factor == pytest.approx(factor)


def test_peft_settings_that_cannot_be_read_are_an_error(base, tmp_path):
    tensors = spelled(pairs(base, [QUERY]), "diffusers")
    for settings in ("{", "[]", '{"lora_alpha": "much"}', '{"alpha_pattern": {"(": 1}}'):
        adapter = write(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": settings})
        assert "PEFT's settings of it cannot be read" in refusal(adapter, base.shapes)


@pytest.mark.parametrize(
    "key", ["unet.down_blocks.0.attn.to_q.lora_A.weight", "lora_unet_blocks_0_self_attn_q.lokr_w1", "blocks.0.weight"]
)
def test_an_adapter_that_matches_nothing_is_an_error_that_shows_a_key(base, tmp_path, key):
    message = refusal(write({key: torch.ones(2, 2)}, tmp_path / "a.safetensors"), base.shapes)
    assert f"matches no tensor of the model; its keys are like {key!r}; use a LoRA made for this model" in message


def test_an_adapter_without_tensors_is_an_error(base, tmp_path):
    assert "matches no tensor of the model; use" in refusal(write({}, tmp_path / "a.safetensors"), base.shapes)


@pytest.mark.parametrize(
    "extra, complaint",
    [
        ({"diffusion_model.blocks.9.self_attn.q.diff_b": (96,)}, "blocks.9.self_attn.q.diff_b matches nothing"),
        ({"diffusion_model.blocks.0.self_attn.norm_q.diff_b": (96,)}, "norm_q.diff_b matches nothing"),
        ({"lora_te_layers_0.lora_up.weight": (2, 2)}, "lora_te_layers_0.lora_up.weight matches nothing"),
        ({"diffusion_model.blocks.1.self_attn.q.dora_scale": (96,)}, "self_attn.q.dora_scale matches nothing"),
        ({"blocks.0.ffn.0.lora_A.weight": (3, 96)}, "ffn.0.lora_A.weight lacks the other half of its pair"),
        ({"blocks.0.ffn.0.lora_B.weight": (128, 3)}, "ffn.0.lora_B.weight lacks the other half of its pair"),
        ({"blocks.0.ffn.0.alpha": ()}, "ffn.0.alpha lacks the other half of its pair"),
        ({"blocks.0.ffn.0.alpha": (2,)}, "ffn.0.alpha [2] is not one number"),
        ({"blocks.1.attn1.to_q.lora_A.weight": (3, 96)}, f"{QUERY}.lora_A.weight beside "),
        ({"blocks.0.norm3.diff": (95,)}, "blocks.0.norm3.diff [95] for blocks.0.norm3.weight [96]"),
        (
            {"blocks.0.ffn.0.lora_A.weight": (3, 64), "blocks.0.ffn.0.lora_B.weight": (128, 3)},
            "lora_B.weight [128, 3] times blocks.0.ffn.0.lora_A.weight [3, 64] for blocks.0.ffn.0.weight [128, 96]",
        ),
        ({"patch_embedding.diff": (96, 36, 1, 2, 2)}, "for patch_embedding.weight [96, 16, 1, 2, 2]"),
    ],
)
def test_an_adapter_that_fits_only_in_part_is_an_error_that_names_keys(base, tmp_path, extra, complaint):
    tensors = spelled(pairs(base, [QUERY]), "original") | {key: torch.ones(shape) for key, shape in extra.items()}
    message = refusal(write(tensors, tmp_path / "a.safetensors"), base.shapes)
    assert "fits only in part: " in message and complaint in message


def test_of_many_keys_without_a_place_five_are_named_and_the_others_counted(base, tmp_path):
    extra = {f"blocks.{i}.diff_m": torch.ones(1, 6, 96) for i in range(3, 12)}
    adapter = write(spelled(pairs(base, [QUERY]), "bare") | extra, tmp_path / "a.safetensors")
    message = refusal(adapter, base.shapes)
    assert message.count("matches nothing") == 5 and " and 4 more; " in message


@pytest.mark.parametrize(
    "module",
    [
        "diffusion_model.blocks.0.cross_attn.k_img",
        "diffusion_model.img_emb.proj.1",
        "transformer.blocks.0.attn2.add_v_proj",
        "transformer.condition_embedder.image_embedder.ff.net.2",
        "lora_unet_blocks_0_cross_attn_v_img",
        "diffusion_model.vace_blocks.0.self_attn.q",
    ],
)
def test_keys_for_image_and_vace_parts_are_skipped_and_told_where_the_model_has_none(base, tmp_path, caplog, module):
    parts = {f"{module}.lora_down.weight": torch.ones(3, 96), f"{module}.lora_up.weight": torch.ones(96, 3)}
    adapter = write(spelled(pairs(base, [QUERY]), "original") | parts, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        fitted = fit(adapter, base.shapes)
    assert set(fitted.skipped) == set(parts) and fitted.terms.keys() == {f"{QUERY}.weight"}
    assert str(adapter.path) in caplog.text and "keys=2" in caplog.text
    assert "matches no tensor" in refusal(write(parts, tmp_path / "b.safetensors"), base.shapes)


def test_keys_for_image_and_vace_parts_are_merged_where_the_model_has_them(base, tmp_path):
    names = ("blocks.0.cross_attn.k_img", "vace_blocks.0.self_attn.q")
    shapes = {**base.shapes, **{f"{name}.weight": (96, 96) for name in names}}
    matrices = {name: (random(RANK, 96), random(96, RANK)) for name in names}
    fitted = fit(write(spelled(matrices, "kohya"), tmp_path / "a.safetensors"), shapes)
    assert fitted.terms.keys() == {f"{name}.weight" for name in names} and not fitted.skipped
    absent = {"diffusion_model.blocks.1.cross_attn.k_img.diff_b": torch.ones(96)}
    adapter = write(spelled(matrices, "kohya") | absent, tmp_path / "b.safetensors")
    assert "blocks.1.cross_attn.k_img.diff_b matches nothing" in refusal(adapter, shapes)


def test_an_adapter_in_another_kind_of_file_or_missing_is_an_error(base, tmp_path):
    torch.save({f"{QUERY}.diff_b": torch.ones(96)}, tmp_path / "a.pt")
    assert "is not a .safetensors file; convert it" in refusal(Adapter(path=tmp_path / "a.pt"), base.shapes)
    assert "is missing" in refusal(Adapter(path=Path(tmp_path / "b.safetensors")), base.shapes)


def test_the_fingerprint_tells_base_adapters_and_strengths(base, tmp_path):
    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    matrices = pairs(base, [QUERY])
    write(spelled(matrices, "diffusers"), file)
    write(spelled(pairs(base, [QUERY], seed=7), "diffusers"), other)
    declared = {"lora_adapter_metadata": '{"lora_alpha": 9}'}
    stronger = write(spelled(matrices, "diffusers"), tmp_path / "c.safetensors", declared)
    rebased = TensorFiles(base.shapes, base.read, "other")
    fingerprints = [
        base.fingerprint,
        merge(base, Adapter(path=file)).fingerprint,
        merge(base, Adapter(path=file, scale=0.5)).fingerprint,
        merge(base, Adapter(path=other)).fingerprint,
        merge(base, Adapter(path=file), Adapter(path=other)).fingerprint,
        merge(base, stronger).fingerprint,
        merge(rebased, Adapter(path=file)).fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints) and {len(f) for f in fingerprints} == {32}
    assert merge(base, Adapter(path=file)).fingerprint == fingerprints[1]
    assert merge(base) is base


@pytest.mark.parametrize(
    "made_for, used_on, skipped, misfit",
    [
        ("t2v-14B", "t2v-14B", 0, None),
        ("i2v-14B", "i2v-14B", 0, None),
        ("i2v-14B", "flf2v-14B", 0, None),
        ("vace-14B", "vace-14B", 0, None),
        ("t2v-14B", "vace-14B", 0, None),
        ("vace-14B", "t2v-14B", 325, None),
        ("t2v-14B", "i2v-14B", 0, "[5120, 16, 1, 2, 2] for patch_embedding.weight [5120, 36, 1, 2, 2]"),
        ("t2v-14B", "t2v-1.3B", 0, "matches nothing and 1189 more"),
    ],
)
def test_a_distilled_adapter_of_a_released_model_fits_those_of_its_shapes(
    released_shapes, tmp_path, made_for, used_on, skipped, misfit
):
    """In the form of LightX2V's tools/extract/lora_extractor.py (f8aee98): large matrices as pairs, others in full."""
    full = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}
    tensors = {}
    for name, shape in released_shapes(made_for).items():
        module, _, leaf = f"diffusion_model.{name}".rpartition(".")
        if len(shape) == 2 and shape[0] * shape[1] >= 1_000_000:
            tensors[f"{module}.lora_up.weight"] = torch.empty(shape[0], 1, dtype=torch.int8)
            tensors[f"{module}.lora_down.weight"] = torch.empty(1, shape[1], dtype=torch.int8)
        else:
            tensors[f"{module}.{full[leaf]}"] = torch.empty(shape, dtype=torch.int8)
    adapter = write(tensors, tmp_path / "a.safetensors")
    shapes = released_shapes(used_on)
    if misfit:
        message = refusal(adapter, shapes)
        assert "fits only in part" in message and misfit in message
        return
    fitted = fit(adapter, shapes)
    shared = shapes.keys() & released_shapes(made_for).keys()
    assert fitted.terms.keys() == shared and len(fitted.skipped) == skipped
    adapter.path.unlink()
