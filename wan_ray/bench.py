"""`wan-ray bench`: the same requests through diffusers' pipeline and through this package, on the same random weights.

Each engine has a process of its own, under the same thread limits, and they take turns clip by clip after one warm-up
clip each. Everything is float32 on the CPU. Reported are medians over clips, for a step (two passes of the DiT,
guidance and solver) over the steps of all clips. Peak memory is the kernel's high-water mark of each process's
resident memory, libraries and loading included.

diffusers runs as its documentation shows: WanPipeline called once per clip, in inference mode, with its default (SDPA)
attention and no progress bar, on the released noise levels. What differs, by design: it pads both prompts to 512
tokens before the text encoder, this package after it; this package computes the text's keys and values once per clip
instead of at every step, calls oneDNN for the VAE's convolutions, and decodes chunk by chunk. Its cache of encoded
texts starts empty for every clip. Both write the MP4 with encode_mp4 from all frames, so that only the engines differ.
"""

import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from wan_ray.bench_engines import ClipRun, EngineName, ProcessState, process_state, render
from wan_ray.errors import ConfigError
from wan_ray.model.debug import DebugSizes, write_debug_checkpoint
from wan_ray.model.text_encoder import TextEncoderArchitecture
from wan_ray.model.vae import VAEArchitecture
from wan_ray.request import RenderRequest
from wan_ray.resolved import ResolvedRequest, resolve
from wan_ray.speed.clock import device_name
from wan_ray.speed.settings import with_folder, write_out
from wan_ray.variants import DiTArchitecture, get_variant

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
LIMIT = 1e-4  # of the relative difference between the engines' latents
_STAGES = {
    "text_encode": "text encode",
    "dit_step": "DiT step",
    "denoise": "all steps",
    "vae_decode": "VAE decode",
    "write_mp4": "write MP4",
    "clip": "whole clip",
}
_PROMPTS = (
    "A red car drives along a sunny highway, camera following from behind",
    "雪后的城市街道，行人撑伞走过斑马线，镜头缓缓推进",
    "Wet asphalt mirrors neon signs while a taxi waits at a crossing, rainy night, slow dolly shot, shallow focus",
)


@dataclass(frozen=True, kw_only=True)
class BenchSizes:
    """What is rendered, and by how large a model: about a minute of work on two cores."""

    model: DebugSizes = DebugSizes(
        dit=DiTArchitecture(dim=192, ffn_dim=768, num_heads=3, num_layers=6, text_dim=512),
        vae=VAEArchitecture(base_dim=8, num_res_blocks=2),
        text_encoder=TextEncoderArchitecture(
            vocab_size=430, dim=512, num_layers=6, num_heads=8, head_dim=64, ffn_dim=1024
        ),
    )
    width: int = 160
    height: int = 96
    num_frames: int = 33
    num_inference_steps: int = 6


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of both engines."""

    diffusers: float
    wan_ray: float

    @property
    def ratio(self) -> float:
        """diffusers' over this package's: above 1 where this package needs less."""
        return self.diffusers / self.wan_ray


@dataclass(frozen=True, kw_only=True)
class Report:
    """All figures. seconds: medians by stage; samples: what they are medians of, in order.

    Memory is what each process held when loaded, and its peak; empty where the system does not tell.
    """

    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    sizes: BenchSizes
    num_clips: int
    seconds: Mapping[str, Compared]
    memory_mib: Mapping[str, Compared]
    relative_differences: Sequence[float]
    samples: Mapping[str, Mapping[EngineName, Sequence[float]]]

    @property
    def outputs_agree(self) -> bool:
        """False for NaN too."""
        return all(difference < LIMIT for difference in self.relative_differences)

    def to_json(self) -> str:
        """All fields, with the ratios and the verdict."""
        ratios = {
            field: {name: {**asdict(figure), "ratio": figure.ratio} for name, figure in figures.items()}
            for field, figures in (("seconds", self.seconds), ("memory_mib", self.memory_mib))
        }
        return json.dumps({**asdict(self), **ratios, "outputs_agree": self.outputs_agree}, indent=2)


def run_bench(*, num_clips: int, json_file: Path | None, sizes: BenchSizes | None = None) -> int:
    """Time both engines, print a table and write the figures as JSON; 1 when their latents differ, else 0.

    ConfigError when there is nothing to render or diffusers is not installed.
    """
    if num_clips < 1:
        raise ConfigError(f"--clips {num_clips} renders nothing; use 1 or more")
    json_file = with_folder(json_file)
    report = compare_engines(sizes or BenchSizes(), num_clips)
    write_out(sys.stdout, table(report))
    if json_file is not None:
        json_file.write_text(report.to_json(), encoding="utf-8")
    return 0 if report.outputs_agree else 1


def compare_engines(sizes: BenchSizes, num_clips: int) -> Report:
    """Render num_clips clips with each engine, after one each that is not counted; a line per clip goes to stderr."""
    requests = [_request(sizes, number) for number in range(num_clips)]
    runs: dict[EngineName, list[ClipRun]] = {name: [] for name in ENGINES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wan-ray-bench-")))
        write_debug_checkpoint(folder, sizes=sizes.model)
        # Spawned, not forked: a fork would count this process's memory, and torch's threads do not survive it.
        spawn = get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for name in ENGINES}
        write_out(sys.stderr, "loading both engines; one warm-up clip each")
        loading = {name: pool.submit(process_state, name, folder) for name, pool in pools.items()}
        loaded = {name: state.result() for name, state in loading.items()}
        for number, request in enumerate([requests[0], *requests]):
            for name, pool in pools.items():
                run = pool.submit(render, name, folder, request).result()
                if number > 0:
                    runs[name].append(run)
                    write_out(sys.stderr, f"clip {number} of {num_clips} by {name}: {run.seconds['clip']:.2f} s")
        ended = {name: pool.submit(process_state, name, folder).result() for name, pool in pools.items()}
    return _report(sizes, runs, loaded=loaded, ended=ended)


def table(report: Report) -> str:
    """The report for a terminal."""
    sizes, machine = report.sizes, report.machine
    dit, vae, text_encoder = sizes.model.dit, sizes.model.vae, sizes.model.text_encoder
    verdict = "agree" if report.outputs_agree else "DIFFER, so the figures compare different work"
    return "\n".join(
        (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads per engine",
            ", ".join(f"{package} {number}" for package, number in report.versions.items()),
            f"{report.num_clips} clips, {sizes.width}x{sizes.height}, {sizes.num_frames} frames, "
            f"{sizes.num_inference_steps} steps with guidance, float32 on the CPU, random weights:",
            f"DiT {dit.num_layers} layers of {dit.dim}, text encoder {text_encoder.num_layers} of {text_encoder.dim}, "
            f"VAE base {vae.base_dim} with {vae.num_res_blocks} blocks per level",
            "",
            f"{'':<22}{'diffusers':>12}{'wan_ray':>12}{'ratio':>9}",
            *(_row(f"{_STAGES[name]}, s", figure, digits=3) for name, figure in report.seconds.items()),
            *(_row(f"memory {name}, MiB", figure, digits=0) for name, figure in report.memory_mib.items()),
            "",
            f"latents {verdict}: relative difference {np.max(report.relative_differences):.1e}, limit {LIMIT:.0e}",
        )
    )


def _request(sizes: BenchSizes, number: int) -> ResolvedRequest:
    request = RenderRequest(
        id=f"bench-{number}",
        prompt=_PROMPTS[number % len(_PROMPTS)],
        width=sizes.width,
        height=sizes.height,
        num_frames=sizes.num_frames,
        num_inference_steps=sizes.num_inference_steps,
        seed=number,
    )
    return resolve(request, get_variant("debug"))


def _report(
    sizes: BenchSizes,
    runs: Mapping[EngineName, Sequence[ClipRun]],
    *,
    loaded: Mapping[EngineName, ProcessState],
    ended: Mapping[EngineName, ProcessState],
) -> Report:
    samples = {
        stage: {name: [run.seconds[stage] for run in runs[name]] for name in ENGINES}
        for stage in _STAGES
        if stage != "dit_step"
    }
    samples["dit_step"] = {name: [s for run in runs[name] for s in run.step_seconds] for name in ENGINES}
    memory = {
        "loaded": Compared(**{name: loaded[name].resident_mib for name in ENGINES}),
        "peak": Compared(**{name: ended[name].peak_mib for name in ENGINES}),
    }
    return Report(
        machine={
            "cpu": device_name(torch.device("cpu")),
            "cores": os.cpu_count() or 0,
            "threads": ended["wan_ray"].num_threads,
            "system": platform.platform(),
        },
        versions={package: version(package) for package in ("wan-ray", "diffusers", "torch", "transformers")},
        sizes=sizes,
        num_clips=len(runs["wan_ray"]),
        seconds={
            stage: Compared(**{name: statistics.median(samples[stage][name]) for name in ENGINES}) for stage in _STAGES
        },
        memory_mib={name: figure for name, figure in memory.items() if math.isfinite(figure.ratio)},
        relative_differences=[
            float(np.linalg.norm(ours.latents - theirs.latents) / np.linalg.norm(theirs.latents))
            for theirs, ours in zip(runs["diffusers"], runs["wan_ray"], strict=True)
        ],
        samples=samples,
    )


def _row(label: str, figure: Compared, *, digits: int) -> str:
    return f"{label:<22}{figure.diffusers:>12.{digits}f}{figure.wan_ray:>12.{digits}f}{figure.ratio:>8.2f}x"
