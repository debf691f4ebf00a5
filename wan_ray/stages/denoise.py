"""Denoise: noise drawn from the row's seed becomes clean latents under its text, on one device or on a gang's ranks."""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from wan_ray.costs.bucket import Bucket
from wan_ray.degrees import Degrees
from wan_ray.model.attention import WHOLE, Layout
from wan_ray.model.attention_kernels import chosen_kernels
from wan_ray.model.checkpoint import Checkpoint
from wan_ray.model.dit import PATCH, DiT
from wan_ray.model.fused import elementwise_kernels
from wan_ray.model.lora import Adapter
from wan_ray.model.quantize import told_of
from wan_ray.model.step_cache import StepCache
from wan_ray.parallel.offload import Offload, Weights
from wan_ray.parallel.process_group import Groups
from wan_ray.parallel.sequence import Attention, SequenceParallel, exchange_passes
from wan_ray.parallel.xfuser_usp import Strategy, choose_attention
from wan_ray.resolved import ResolvedRequest
from wan_ray.sampling.loop import OnStep, Velocity, denoise, guide, guided
from wan_ray.sampling.state import Progress
from wan_ray.stages.items import Item
from wan_ray.stages.memory import Ladder
from wan_ray.stages.pause import BetweenSteps, Pause, recipe_of
from wan_ray.stages.read import bucket_of
from wan_ray.variants import Quantization

LATENT_CHANNELS = 16
_RENDER_LESS = "render fewer pixels or frames"


def latent_shape(request: ResolvedRequest, *, num_references: int = 0) -> tuple[int, int, int, int]:
    """[channels, latent frames, rows, columns]: the VAE steps by 4 in time and by 8 in space; references come first."""
    num_latent_frames = (request.num_frames - 1) // 4 + 1
    return (LATENT_CHANNELS, num_references + num_latent_frames, request.height // 8, request.width // 8)


def draw_noise(request: ResolvedRequest, *, num_references: int = 0) -> Tensor:
    """The row's noise, float32: drawn whole on the CPU, so that it is the same on any device and cluster shape."""
    shape = latent_shape(request, num_references=num_references)
    return torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a DiT computes. weights: where they are, if that can change. attention: of a gang that divides tokens."""

    device: torch.device
    offload: Offload = "none"
    weights: Weights | None = None
    groups: Groups | None = None
    attention: Attention | None = None


class _Latest:
    """How far a clip has come, to go on from when a step has failed."""

    def __init__(self, start: Progress | None, between_steps: BetweenSteps) -> None:
        self.progress = start
        self.cache: StepCache | None = None
        self._between_steps = between_steps

    @property
    def step(self) -> int:
        """Of the step that is being taken."""
        return self.progress.state.step if self.progress else 0

    def __call__(self, progress: Progress) -> None:
        self.progress = progress
        self._between_steps(progress)


class DenoiseStage:
    """Owns the DiT, or one rank's part of it.

    All ranks of a gang are called with the same items, and return the same. A rank that is alone and has not the
    memory keeps the DiT's blocks in host memory; of several, one that has not raises.
    """

    def __init__(
        self,
        model: DiT,
        fingerprint: str,
        place: Place,
        fix: Callable[[Bucket], str] = lambda _: _RENDER_LESS,
        *,
        quantized: Mapping[str, str] | None = None,
    ) -> None:
        """fix: what to do about a shape for which there is no memory, in a few words. quantized: for the record."""
        self.model = model
        self.fingerprint = fingerprint
        self._place = place
        self._fix = fix
        self._quantized = quantized or {}
        alone = place.groups is None or place.groups.degrees.world_size == 1
        leaner: tuple[Offload, ...] = ("blocks",) if alone and place.weights and place.offload != "blocks" else ()
        self._ladder = Ladder[Offload]("denoise", (place.offload, *leaner))

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        adapters: Sequence[Adapter] = (),
        offload: Offload = "none",
        quantization: Quantization = "none",
        groups: Groups | None = None,
        strategy: Strategy = "auto",
        fsdp: bool = False,
        fix: Callable[[Bucket], str] = lambda _: _RENDER_LESS,
    ) -> Self:
        """CheckpointError when the weights or the adapters do not fit. All ranks of the groups call it.

        quantization goes with neither offload nor fsdp; MissingExtraError when it lacks its package.
        """
        weights: Weights | None = None
        if groups is not None and fsdp:
            # Imported here: it takes seconds, and is for weights that are sharded.
            from wan_ray.parallel.fsdp import load_sharded_dit

            on_host = offload != "none"
            model, fingerprint = load_sharded_dit(checkpoint, groups, dtype=dtype, adapters=adapters, on_host=on_host)
        else:
            home = device if offload == "none" else torch.device("cpu")
            model, fingerprint = checkpoint.load_dit(
                dtype=dtype, device=home, adapters=adapters, quantization=quantization
            )
            if quantization == "none":  # else they stay where they are
                weights = Weights(model, model.blocks_in_order(), device, offload)
        attention = None
        if groups is not None and groups.sequence is not None:
            attention = choose_attention(groups, strategy, num_heads=model.architecture.num_heads, dtype=dtype)
        place = Place(device=device, offload=offload, weights=weights, groups=groups, attention=attention)
        return cls(model, fingerprint, place, fix, quantized=told_of(quantization, dtype=dtype, device=device))

    @torch.inference_mode()
    def __call__(
        self, item: Item, on_step: OnStep | None = None, *, resume: bytes | None = None, pause: Pause | None = None
    ) -> Item:
        """The item with tensor latents, float32 [16, T, h, w], on the CPU; on_step(done, total) after each step.

        resume: what pause.save was given of this item, on any layout of ranks; ProgressError when it is of another.
        ClipStoppedError when the pause says so. OutOfMemoryError, with what to do, when offload does not help either.
        """
        recipe = recipe_of(item, self.fingerprint)
        start = None if resume is None else Progress.from_bytes(resume, recipe)
        between = BetweenSteps(
            pause or Pause(),
            groups=self._place.groups,
            recipe=recipe,
            num_steps=item.sound.num_inference_steps,
        )
        latest = _Latest(start, between)

        def work(offload: Offload) -> tuple[Tensor, Offload]:
            if self._place.weights is not None:
                self._place.weights.keep(offload)
            return self._latents(item, on_step, latest), offload

        bucket = bucket_of(item.sound)
        latents, offload = self._ladder.climb(bucket, work, fix=self._fix(bucket))
        notes: dict[str, str] = {"offload": offload} if offload != "none" else {}
        if latest.cache is not None:
            notes["steps_computed"] = f"{latest.cache.num_computed} of {latest.cache.num_steps}"
        return replace(
            item,
            tensors={"latents": latents},
            weights={**item.weights, "transformer": self.fingerprint},
            rendered_on={**item.rendered_on, **self._rendered_on(), **notes},
        )

    def _latents(self, item: Item, on_step: OnStep | None, latest: "_Latest") -> Tensor:
        request = item.sound
        num_references = len(request.media.get("reference_images", ()))
        noise = draw_noise(request, num_references=num_references)[None].to(self._place.device)
        with self._place.weights or nullcontext():
            latents = denoise(
                self._velocity(item, self._layout(noise), latest),
                noise,
                solver=request.solver,
                num_inference_steps=request.num_inference_steps,
                flow_shift=request.flow_shift,
                on_step=on_step,
                between_steps=latest,
                resume=latest.progress,
            )
        return latents[0, :, num_references:].cpu()

    def _rendered_on(self) -> dict[str, str]:
        """What may round differently elsewhere."""
        device, groups = self._place.device, self._place.groups
        kernels = {"attention": chosen_kernels(), "elementwise": elementwise_kernels(device)}
        return {
            **(kernels if device.type == "cuda" else {}),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "dtype": str(self.model.get_parameter("blocks.0.self_attn.q.weight").dtype).removeprefix("torch."),
            "layout": str(groups.degrees if groups else Degrees()),
            **self._quantized,
        }

    def _layout(self, noise_BCTHW: Tensor) -> Layout:
        groups, attention = self._place.groups, self._place.attention
        if groups is None or attention is None:
            return WHOLE
        _, _, frames, rows, columns = noise_BCTHW.shape
        num_tokens = frames * (rows // PATCH) * (columns // PATCH)
        return SequenceParallel(groups=groups, num_tokens=num_tokens, attention=attention)

    def _velocity(self, item: Item, layout: Layout, latest: "_Latest") -> Velocity:
        """The model's output under the item's text, guided where and when the request says so."""
        request = item.sound
        latest.cache = cache = self._step_cache(request.step_cache)
        if not request.guided_steps:  # both halves of a gang compute the same
            return self._pass(item, "context", layout, cache)
        with_guidance, without = self._both_ways(item, layout, cache)
        if len(request.guided_steps) == request.num_inference_steps:
            return with_guidance

        def velocity(latents: Tensor, timestep: int) -> Tensor:
            if cache is not None and latest.step == request.guided_steps.start:
                cache.forget()  # the unconditional pass, on one device at least, has nothing to take over yet
            return (with_guidance if latest.step in request.guided_steps else without)(latents, timestep)

        return velocity

    def _both_ways(self, item: Item, layout: Layout, steps: StepCache | None) -> tuple[Velocity, Velocity]:
        """With guidance, and without."""
        groups, scale = self._place.groups, item.sound.guidance_scale
        if groups is None or groups.cfg is None:
            conditional = self._pass(item, "context", layout, steps)
            unconditional = self._pass(item, "negative_context", layout, steps, follows=True)
            return guided(conditional, unconditional, scale), conditional
        mine = self._pass(item, "negative_context" if groups.cfg_rank else "context", layout, steps)

        def with_guidance(latents: Tensor, timestep: int) -> Tensor:
            return guide(*exchange_passes(mine(latents, timestep), groups), scale)

        def without(latents: Tensor, timestep: int) -> Tensor:
            # The other half computes too: its blocks may hold a part of the weights.
            return exchange_passes(mine(latents, timestep), groups)[0]

        return with_guidance, without

    def _step_cache(self, threshold: float) -> StepCache | None:
        """A clip's, empty."""
        groups = self._place.groups
        if not threshold:
            return None
        return StepCache(threshold) if groups is None else StepCache(threshold, agree=groups.from_leader)

    def _pass(
        self, item: Item, text: str, layout: Layout, steps: StepCache | None, *, follows: bool = False
    ) -> Velocity:
        conditions = {
            name: item.tensors[name].to(self._place.device)
            for name in ("image_features", "condition", "vace_context")
            if name in item.tensors
        }
        context = self.model.encode_context(
            item.tensors[text].to(self._place.device),
            **conditions,
            context_scale=item.sound.context_scale,
            layout=layout,
        )
        cache = None if steps is None else steps.passes(follows=follows)
        return lambda latents, timestep: self.model(latents, timestep, context, cache)
