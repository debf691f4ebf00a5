"""Image and VACE models: whole goldens from their raw inputs, diffusers on the same weights, and the released sizes."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from wan_ray.config import ModelSection
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.model.conditioning import vace_context
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.dit import DiT
from wan_ray.model.weights import shapes_of
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant

GOLDENS = Path(__file__).parents[1] / "goldens" / "a"
KINDS = ("i2v", "flf2v", "vace")
_REQUEST = ("prompt", "negative_prompt", "seed", "num_frames", "num_inference_steps", "flow_shift", "guidance_scale")

RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageLoader]:
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_debug_checkpoint(folder / kind, kind=kind)
    sections = {k: ModelSection(variant=f"debug-{k}", checkpoint=str(folder / k), device="cpu") for k in KINDS}
    return {kind: StageLoader(model=section) for kind, section in sections.items()}


def png(picture_HWC: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def item_of(golden: str, task: str, **media: object) -> tuple[Item, dict[str, Tensor]]:
    tensors = load_file(GOLDENS / f"{golden}.safetensors")
    known = json.loads((GOLDENS / f"{golden}.json").read_text(encoding="utf-8"))
    height, width = (8 * side for side in tensors["noise"].shape[2:])
    fields = {name: known[name] for name in _REQUEST}
    request = RenderRequest(task=task, width=width, height=height, **fields, **media)
    return Item(name="", id="", row=None, request=resolve(request, get_variant(f"debug-{task}")), prompt=""), tensors


def assert_ends_as_released(
    item: Item, wanted: dict[str, Tensor], loader: StageLoader, relative_error: RelativeError
) -> None:
    """Latents within 1e-5, and the video as closely as its float16 storage tells."""
    latents = loader.denoise()(item).tensors["latents"]
    num_references = wanted["latents"].shape[1] - latents.shape[1]
    assert relative_error(latents, wanted["latents"][:, num_references:]) < 1e-5
    with torch.inference_mode():
        video = loader.decode().vae.decode(latents[None])[0]
    assert relative_error(video.half().float(), wanted["video"].float()) < 1e-4


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_a_clip_from_images_is_the_released_one(
    loaders: dict[str, StageLoader], relative_error: RelativeError, kind: str
) -> None:
    pictures = load_file(GOLDENS / f"{kind}.safetensors")
    media = {name: png(pictures[name]) for name in ("image", "last_image") if name in pictures}
    item, wanted = item_of(kind, kind, **media)
    encoded = loaders[kind].encode()(item)
    assert relative_error(encoded.tensors["condition"], wanted["y"]) < 1e-5
    assert_ends_as_released(encoded, wanted, loaders[kind], relative_error)


def test_an_image_decides_the_size_as_in_the_release(loaders: dict[str, StageLoader]) -> None:
    """A picture of 150x100 at the area of 160x96: sqrt(15360 * 2 / 3) = 101.2 and sqrt(15360 * 3 / 2) = 151.8."""
    request = RenderRequest(
        task="i2v", prompt="a", num_frames=5, image=png(load_file(GOLDENS / "i2v.safetensors")["image"])
    )
    resolved = resolve(request, get_variant("debug-i2v"))
    item = loaders["i2v"].encode()(Item(name="", id="", row=None, request=resolved, prompt=""))
    assert (item.sound.width, item.sound.height) == (144, 96)
    assert item.tensors["condition"].shape == (20, 2, 12, 18)


@pytest.mark.parametrize("golden", ["vace-r2v", "vace-mv2v", "vace-v2v"])
def test_a_controlled_clip_is_the_released_one(
    loaders: dict[str, StageLoader], relative_error: RelativeError, golden: str
) -> None:
    """From the golden's own frames, masks and references, which are floats that no file holds."""
    item, wanted = item_of(golden, "vace")
    references = [wanted[name][:, 0] for name in sorted(wanted) if name.startswith("ref")]
    encode = loaders["vace"].encode()
    encoded = encode(item)
    size = {"width": item.sound.width, "height": item.sound.height, "num_frames": item.sound.num_frames}
    with torch.inference_mode():
        context = vace_context(encode.conditioner.vae, wanted["frames"], wanted["mask_in"][0], references, **size)
    assert relative_error(context, wanted["vace_context"]) < 1e-5
    request = replace(encoded.sound, media={"reference_images": ["given"] * len(references)} if references else {})
    ready = replace(encoded, request=request, tensors={**encoded.tensors, "vace_context": context})
    assert_ends_as_released(ready, wanted, loaders["vace"], relative_error)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_velocities_agree_with_diffusers(
    loaders: dict[str, StageLoader], relative_error: RelativeError, kind: str
) -> None:
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_transformer

    checkpoint = loaders[kind].checkpoint()
    ours, theirs = loaders[kind].denoise().model, diffusers_transformer(checkpoint)
    random = torch.Generator().manual_seed(3)
    latents, text = torch.randn(1, 16, 3, 8, 12, generator=random), torch.randn(7, 4096, generator=random)
    padded = torch.cat([text, torch.zeros(505, 4096)])[None]
    timestep = torch.tensor([700])
    if kind == "vace":
        control = torch.randn(96, 3, 8, 12, generator=random)
        scale = torch.full((2,), 0.7)
        controlled = {"control_hidden_states": control[None], "control_hidden_states_scale": scale}
        wanted = theirs(latents, timestep, padded, **controlled, return_dict=False)[0]
        found = ours(latents, 700, ours.encode_context(text, vace_context=control, context_scale=0.7))
    else:
        tokens = checkpoint.check().image_tokens
        features, condition = torch.randn(tokens, 1280, generator=random), torch.randn(20, 3, 8, 12, generator=random)
        together = torch.cat([latents, condition[None]], dim=1)
        images = features.view(-1, 257, 1280)
        wanted = theirs(together, timestep, padded, encoder_hidden_states_image=images, return_dict=False)[0]
        found = ours(latents, 700, ours.encode_context(text, image_features=features, condition=condition))
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize(
    ("variant", "released"),
    [
        ("i2v-14B-480P", "i2v-14B"),
        ("i2v-14B-720P", "i2v-14B"),
        ("flf2v-14B", "flf2v-14B"),
        ("vace-1.3B", "vace-1.3B"),
        ("vace-14B", "vace-14B"),
    ],
)
def test_every_model_has_the_released_tensors(
    released_shapes: Callable[[str], dict[str, tuple[int, ...]]], variant: str, released: str
) -> None:
    architecture = get_variant(variant).architecture
    assert architecture is not None
    with torch.device("meta"):
        assert shapes_of(DiT(architecture)) == released_shapes(released)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_saved_by_diffusers_load_as_the_same_weights(
    loaders: dict[str, StageLoader], tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("diffusers")
    from wan_ray.diffusers_reference import diffusers_transformer

    diffusers_transformer(loaders[kind].checkpoint()).save_pretrained(tmp_path)
    lone = find_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors", loaders[kind].model.checkpoint)
    again, _ = lone.load_dit(dtype=torch.float32, device=torch.device("cpu"))
    for name, parameter in loaders[kind].denoise().model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
