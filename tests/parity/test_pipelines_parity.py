"""Whole clips beside diffusers' image and VACE pipelines: the same random weights, inputs, texts and noise.

What diffusers does otherwise than the released code, and so than this project, is evened out; each where it stands.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, CLIPVisionConfig, CLIPVisionModel

from wan_ray.config import ModelSection
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.model.image_encoder import IMAGE_ENCODER_FILE
from wan_ray.model.key_maps import image_encoder_names_from_released
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.denoise import draw_noise
from wan_ray.stages.items import Item
from wan_ray.stages.loader import StageLoader
from wan_ray.variants import get_variant

diffusers = pytest.importorskip("diffusers")

WIDTH, HEIGHT, NUM_FRAMES = 64, 48, 9
PROMPT, NEGATIVE = "A road in fog, 雾", "blurred, 模糊"
STEPS, GUIDANCE, SHIFT, SCALE = 3, 4.0, 5.0, 0.7
# Of what CLIP was trained with: transformers' OPENAI_CLIP_MEAN and _STD.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

RelativeError = Callable[[Tensor, Tensor], float]


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StageLoader]:
    folder, loaders = tmp_path_factory.mktemp("kinds"), {}
    for kind in ("i2v", "flf2v", "vace"):
        write_debug_checkpoint(folder / kind, kind=kind)
        section = ModelSection(variant=f"debug-{kind}", checkpoint=str(folder / kind), device="cpu")
        loaders[kind] = StageLoader(model=section)
    return loaders


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth color, as pictures have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ours(loader: StageLoader, task: str, **media: object) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, latents and video of a row, the video in [0, 1]."""
    request = RenderRequest.model_validate(
        {
            "task": task,
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "width": WIDTH,
            "height": HEIGHT,
            "num_frames": NUM_FRAMES,
            "num_inference_steps": STEPS,
            "guidance_scale": GUIDANCE,
            "flow_shift": SHIFT,
            "seed": 3,
            **media,
        }
    )
    resolved = resolve(request, get_variant(f"debug-{task}"))
    item = loader.encode()(Item(name="", id="", row=None, request=resolved, prompt=""))
    latents = loader.denoise()(item).tensors["latents"]
    with torch.inference_mode():
        video = loader.decode().vae.decode(latents[None])[0]
    noise = draw_noise(item.sound, num_references=len(resolved.media.get("reference_images", ())))
    return noise, latents, video.permute(1, 0, 2, 3) / 2 + 0.5


def theirs(pipeline: Any, noise: Tensor, **inputs: object) -> tuple[Tensor, Tensor]:
    """The last latents, with those of references in front, and the video of a pipeline."""
    seen: list[Tensor] = []

    def keep(_: object, __: int, ___: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        # Noise is drawn by another rule there: from the device's generator, of other shapes beside references.
        latents=noise[None],
        # Its default is 226 tokens, and beside an image any number but 512 is taken for another split of the two.
        max_sequence_length=512,
        callback_on_step_end=keep,
        output_type="pt",
        **inputs,
    ).frames[0]
    assert len(seen) == STEPS
    return seen[-1][0], video


def parts(loader: StageLoader) -> dict[str, Any]:
    """Text encoder, tokenizer, VAE and transformer of the checkpoint, and UniPC on the released noise levels.

    On diffusers' own levels the latents end 10 % apart.
    """
    from wan_ray.diffusers_reference import diffusers_pipeline

    components = diffusers_pipeline(loader.checkpoint(), flow_shift=SHIFT).components
    return {name: components[name] for name in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}


def full_clip(folder: str) -> CLIPVisionModel:
    """transformers' CLIP with every block of the file: the pipeline runs the last one too, and drops what it gives."""
    stored = torch.load(Path(folder) / IMAGE_ENCODER_FILE, weights_only=True)
    blocks = {name.split(".")[2] for name in stored if name.startswith("visual.transformer.")}
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=stored["visual.transformer.0.mlp.0.weight"].shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
    )
    model = CLIPVisionModel(config).eval()
    tower = getattr(model, "vision_model", model)
    wanted, tensors = tower.state_dict(), {}
    for name, value in stored.items():
        if names := image_encoder_names_from_released(name):
            for new, piece in zip(names, value.float().chunk(len(names)), strict=True):
                tensors[new] = piece.reshape(wanted[new].shape)
    absent = tower.load_state_dict(tensors, strict=False).missing_keys
    assert all(name.startswith("post_layernorm") for name in absent)
    return model


def squeezed(images: Image.Image | list[Image.Image], return_tensors: str) -> BatchFeature:
    """CLIP's input as released: squeezed to a square, where CLIPImageProcessor keeps the aspect and crops."""
    frames = [np.asarray(image) for image in (images if isinstance(images, list) else [images])]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    square = F.interpolate(pixels, (224, 224), mode="bicubic") * 0.5 + 0.5
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return BatchFeature({"pixel_values": (square - mean) / std}, tensor_type=return_tensors)


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
@torch.inference_mode()
def test_a_clip_from_images_is_that_of_diffusers_pipeline(
    loaders: dict[str, StageLoader], relative_error: RelativeError, kind: str
) -> None:
    """The pictures have the clip's size: there they are resized by Lanczos, and a last one of another size is squeezed.

    FLF2V is the same pipeline, given a last image.
    """
    loader = loaders[kind]
    media = {"image": picture(1)} | ({"last_image": picture(2)} if kind == "flf2v" else {})
    noise, latents, video = ours(loader, kind, **{name: png(image) for name, image in media.items()})
    pipeline = diffusers.WanImageToVideoPipeline(**parts(loader), image_encoder=full_clip(loader.model.checkpoint))
    pipeline.image_processor = squeezed
    wanted_latents, wanted_video = theirs(pipeline, noise, **media)
    assert relative_error(latents, wanted_latents) < 1e-5
    assert relative_error(video, wanted_video) < 1e-5


@pytest.mark.parametrize("sources", ["references", "control", "masked", "masked with references"])
@torch.inference_mode()
def test_a_controlled_clip_is_that_of_diffusers_pipeline(
    loaders: dict[str, StageLoader], relative_error: RelativeError, tmp_path: Path, sources: str
) -> None:
    """Frames and masks have the clip's size and length: others are fitted there by another rule, or misalign.

    Sides of references are multiples of 8, to which they are stretched there.
    """
    frames = [picture(10 + index) for index in range(NUM_FRAMES)]
    masks = []
    for index in range(NUM_FRAMES):
        mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        mask[8:32, 4 * index : 4 * index + 24] = 255
        masks.append(Image.fromarray(mask))
    references = [picture(30, 40, 56), picture(31, 88, 24)]
    media: dict[str, object] = {}
    inputs: dict[str, object] = {}
    for field, name, images in (("control_video", "video", frames), ("mask_video", "mask", masks)):
        if sources == "references" or (sources == "control" and name == "mask"):
            continue
        (tmp_path / name).mkdir()
        for index, image in enumerate(images):
            image.save(tmp_path / name / f"{index}.png")
        media[field], inputs[name] = str(tmp_path / name), images
    if "references" in sources:
        media["reference_images"] = [png(image) for image in references]
        # Each reference is put before those that came before it there.
        inputs["reference_images"] = references[::-1]
    loader = loaders["vace"]
    noise, latents, video = ours(loader, "vace", context_scale=SCALE, **media)
    pipeline = diffusers.WanVACEPipeline(**parts(loader))
    wanted_latents, wanted_video = theirs(pipeline, noise, conditioning_scale=SCALE, **inputs)
    num_references = len(media.get("reference_images", ()))
    # References are in the latents there, and are left out of the video only.
    assert relative_error(latents, wanted_latents[:, num_references:]) < 1e-5
    assert relative_error(video, wanted_video) < 1e-5
