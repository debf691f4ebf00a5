"""The DiT against what the released code computed, against diffusers on the same weights, and its released sizes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_ray.model.checkpoint import dit_architecture, find_checkpoint
from wan_ray.model.dit import DiT
from wan_ray.model.text_encoder import encode_prompt
from wan_ray.model.weights import shapes_of
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest
from wan_ray.variants import get_variant

CPU = torch.device("cpu")

Golden = Callable[[str], tuple[dict[str, Tensor], dict[str, object]]]
RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def model(debug_checkpoint: Path) -> DiT:
    return find_checkpoint(debug_checkpoint).load_dit(dtype=torch.float32, device=CPU)[0]


@pytest.fixture(scope="module")
def contexts(debug_checkpoint: Path, golden: Golden) -> list[Tensor]:
    """Text embeddings of the goldens' prompt and negative prompt, from the goldens' token ids."""
    encoder, _ = find_checkpoint(debug_checkpoint).load_text_encoder(dtype=torch.float32, device=CPU)
    tensors, _ = golden("t2v")
    rows = zip(tensors["ids"], tensors["mask"].bool(), strict=True)
    return [encode_prompt(encoder, ids[mask].tolist()) for ids, mask in rows]


@pytest.mark.parametrize("kind", ["t2v", "t2v-dpm", "t2i"])
@torch.inference_mode()
def test_every_step_gives_the_released_velocities(
    model: DiT, contexts: list[Tensor], golden: Golden, relative_error: RelativeError, kind: str
) -> None:
    tensors, _ = golden(kind)
    conditional, unconditional = (model.encode_context(context) for context in contexts)
    for step, timestep in enumerate(tensors["timesteps"].tolist()):
        latents = tensors["noise" if step == 0 else f"step{step}.x"][None]
        for name, context in (("cond", conditional), ("uncond", unconditional)):
            found = model(latents, timestep, context)[0]
            assert relative_error(found, tensors[f"step{step}.{name}"]) < 1e-5, (step, name)


@pytest.mark.parametrize("grid", [(1, 2, 2), (3, 8, 12), (5, 6, 4)])
@torch.inference_mode()
def test_velocities_agree_with_diffusers(
    model: DiT, debug_checkpoint: Path, relative_error: RelativeError, grid: tuple[int, int, int]
) -> None:
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_transformer

    theirs = diffusers_transformer(find_checkpoint(debug_checkpoint))
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, *grid, generator=random)
    context = torch.randn(9, 4096, generator=random)
    padded = torch.cat([context, torch.zeros(512 - len(context), 4096)])
    wanted = theirs(
        hidden_states=latents,
        timestep=torch.tensor([637, 637]),
        encoder_hidden_states=padded.expand(2, -1, -1),
        return_dict=False,
    )[0]
    assert relative_error(model(latents, 637, model.encode_context(context)), wanted) < 1e-5


def test_bfloat16_is_as_close_as_the_released_codes_own(
    debug_checkpoint: Path, golden: Golden, relative_error: RelativeError
) -> None:
    exact, request = golden("t2v")
    rounded, _ = golden("t2v-bf16")
    renderer = Renderer.from_checkpoint(debug_checkpoint, dtype="bfloat16", device="cpu")
    found = renderer(RenderRequest.model_validate(request)).latents
    theirs = relative_error(rounded["latents"], exact["latents"])
    assert relative_error(found, exact["latents"]) < 1.5 * theirs


@pytest.mark.parametrize("name", ["t2v-1.3B", "t2v-14B"])
def test_the_released_models_have_the_released_tensors(
    name: str, released_shapes: Callable[[str], Mapping[str, tuple[int, ...]]]
) -> None:
    architecture = get_variant(name).architecture
    assert architecture is not None
    with torch.device("meta"):
        model = DiT(architecture)
    assert shapes_of(model) == released_shapes(name)
    assert dit_architecture(dict(released_shapes(name))) == architecture
