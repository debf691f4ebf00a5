"""What the processes of a bench run: each holds one engine, renders clips, and says how long every stage took."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from wan_ray.config import VideoSection
from wan_ray.media.video import encode_mp4
from wan_ray.model.checkpoint import find_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.resolved import ResolvedRequest
from wan_ray.stages.denoise import draw_noise
from wan_ray.stages.encode import EncodeStage
from wan_ray.stages.items import Item
from wan_ray.variants import TASK_DEFAULTS

EngineName = Literal["diffusers", "wan_ray"]


@dataclass(frozen=True, kw_only=True)
class ClipRun:
    """One clip: seconds by stage and of each step; the latents before the VAE, float32 [16, T, h, w], to compare."""

    seconds: dict[str, float]
    step_seconds: list[float]
    latents: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ProcessState:
    """torch's threads, and MiB of memory resident now and at most so far, NaN where the system does not tell."""

    num_threads: int
    resident_mib: float
    peak_mib: float


Engine = Callable[[ResolvedRequest], ClipRun]


@cache
def load_engine(name: EngineName, checkpoint: Path) -> Engine:
    """The engine, loaded by its process's first call."""
    return DiffusersEngine(checkpoint) if name == "diffusers" else OwnEngine(checkpoint)


def render(name: EngineName, checkpoint: Path, request: ResolvedRequest) -> ClipRun:
    """One clip by this process's engine."""
    return load_engine(name, checkpoint)(request)


def process_state(name: EngineName, checkpoint: Path) -> ProcessState:
    """The process's state with its engine loaded."""
    load_engine(name, checkpoint)
    return ProcessState(
        num_threads=torch.get_num_threads(), resident_mib=_memory_mib("VmRSS"), peak_mib=_memory_mib("VmHWM")
    )


class OwnEngine:
    """This package's Renderer, stage by stage."""

    def __init__(self, checkpoint: Path) -> None:
        self.renderer = Renderer.from_checkpoint(checkpoint, dtype="float32", device="cpu")

    def __call__(self, request: ResolvedRequest) -> ClipRun:
        stages = self.renderer
        # A new stage has an empty cache: diffusers encodes the negative prompt for every clip, so does this.
        encode = EncodeStage(stages.encode.encoder, stages.encode.tokenizer, stages.encode.fingerprint)
        step_ends: list[float] = []
        started = time.perf_counter()
        item = encode(Item(name="", id=request.id, row=None, request=request, prompt=request.prompt))
        encoded = time.perf_counter()
        item = stages.denoise(item, lambda *_: step_ends.append(time.perf_counter()))
        frames = np.concatenate(list(stages.decode.frames(item.tensors["latents"])))
        decoded = time.perf_counter()
        _write_mp4(frames, request)
        marks = [started, encoded, step_ends[-1], decoded, time.perf_counter()]
        return _clip_run(marks, step_ends, item.tensors["latents"])


class DiffusersEngine:
    """diffusers' WanPipeline, called once per clip; hooks note when its stages end."""

    def __init__(self, checkpoint: Path) -> None:
        # Not above: the other engine's process, whose memory is measured, has no need of diffusers.
        from wan_ray.diffusers_reference import diffusers_pipeline

        self.pipeline = diffusers_pipeline(find_checkpoint(checkpoint), flow_shift=TASK_DEFAULTS["t2v"].flow_shift)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.text_encoder.register_forward_hook(self._note_text_encoded)
        self.encoded = 0.0
        self.step_ends: list[float] = []
        self.latents = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, request: ResolvedRequest) -> ClipRun:
        self.step_ends = []
        started = time.perf_counter()
        video = self.pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            latents=draw_noise(request)[None],
            max_sequence_length=512,
            callback_on_step_end=self._note_step_ended,
            output_type="np",
        ).frames[0]
        frames = (video * 255).round().astype(np.uint8)
        decoded = time.perf_counter()
        _write_mp4(frames, request)
        marks = [started, self.encoded, self.step_ends[-1], decoded, time.perf_counter()]
        return _clip_run(marks, self.step_ends, self.latents[0])

    def _note_text_encoded(self, *_: object) -> None:
        """The last call is the negative prompt's."""
        self.encoded = time.perf_counter()

    def _note_step_ended(self, pipeline: object, step: int, timestep: Tensor, kept: dict[str, Any]) -> dict[str, Any]:
        self.step_ends.append(time.perf_counter())
        self.latents = kept["latents"]
        return kept


def _clip_run(marks: list[float], step_ends: list[float], latents: Tensor) -> ClipRun:
    """marks: the clip's start and the ends of its four stages. The first step begins where the text is encoded."""
    stages = ("text_encode", "denoise", "vae_decode", "write_mp4")
    seconds = {stage: end - start for stage, (start, end) in zip(stages, pairwise(marks), strict=True)}
    steps = [end - start for start, end in pairwise([marks[1], *step_ends])]
    return ClipRun(seconds={**seconds, "clip": marks[-1] - marks[0]}, step_seconds=steps, latents=latents.numpy())


def _write_mp4(frames: np.ndarray, request: ResolvedRequest) -> None:
    settings = VideoSection()
    with tempfile.TemporaryDirectory(prefix="wan-ray-") as folder:
        encode_mp4(
            [frames],
            path=Path(folder) / "clip.mp4",
            width=request.width,
            height=request.height,
            fps=request.fps,
            crf=settings.crf,
            preset=settings.preset,
            threads=settings.threads,
        )


def _memory_mib(field: str) -> float:
    """VmRSS or VmHWM of this process. Not from getrusage, whose peak counts the parent's memory too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    values = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(values[field].split()[0]) / 1024
