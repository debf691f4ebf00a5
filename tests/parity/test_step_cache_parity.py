"""The step cache beside diffusers' first-block cache: the same criterion, so the same steps computed and the same clip.

Without guidance, since diffusers decides for each pass by itself. Not for VACE, where its cache leaves out hints.
"""

import pytest
import torch
from torch import Tensor

from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.stages.items import Item
from wan_ray.variants import get_variant

diffusers = pytest.importorskip("diffusers")
NUM_STEPS = 8


@pytest.mark.parametrize("threshold", [0.65, 0.79])
def test_the_same_steps_are_computed_and_the_latents_are_those_of_diffusers(debug_checkpoint, threshold):
    renderer = Renderer.from_checkpoint(debug_checkpoint, dtype="float32", device="cpu")
    request = RenderRequest(
        id="a",
        prompt="A red car",
        width=64,
        height=48,
        num_frames=9,
        num_inference_steps=NUM_STEPS,
        guidance_scale=1.0,
        step_cache=threshold,
        seed=4,
    )
    resolved = resolve(request, get_variant("debug"))
    encoded = renderer.encode(Item(name="a", id="a", row=0, request=resolved, prompt=request.prompt))
    found = renderer.denoise(encoded)
    computed, wanted = diffusers_latents(debug_checkpoint, encoded, threshold)
    assert found.rendered_on["steps_computed"] == f"{computed} of {NUM_STEPS}"
    assert 1 < computed < NUM_STEPS
    assert ((found.tensors["latents"] - wanted).norm() / wanted.norm()).item() < 1e-5


@torch.inference_mode()
def diffusers_latents(checkpoint, encoded: Item, threshold: float) -> tuple[int, Tensor]:
    """How many steps went through the last block, and the latents."""
    from wan_ray.diffusers_reference import diffusers_pipeline
    from wan_ray.stages.denoise import draw_noise

    request = encoded.sound
    pipeline = diffusers_pipeline(find_checkpoint(checkpoint), flow_shift=request.flow_shift)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=threshold))
    calls: list[int] = []
    pipeline.transformer.blocks[1].attn1.register_forward_hook(lambda *_: calls.append(1))
    latents = pipeline(
        prompt=request.prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=1.0,
        latents=draw_noise(request)[None],
        max_sequence_length=512,
        output_type="latent",
    ).frames
    return len(calls), latents[0]
