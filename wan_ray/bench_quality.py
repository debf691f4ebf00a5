"""What each shortcut saves and what it costs: the same prompts with and without it, side by side."""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from wan_ray.errors import ConfigError
from wan_ray.media.likeness import Likeness, likeness
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest, parse_row
from wan_ray.resolved import ResolvedRequest, resolve
from wan_ray.sample import ROWS
from wan_ray.speed.clock import device_name
from wan_ray.speed.settings import size_of, with_folder, write_out
from wan_ray.stages.items import Item
from wan_ray.stages.memory import free
from wan_ray.stages.publish import package_versions
from wan_ray.variants import QUALITIES, Quantization

# Roads, for most who render many clips render these, and the demo model knows nothing else.
PROMPTS = tuple(prompt for _, task, prompt, *_ in ROWS if task == "t2v")
_CACHES = (0.03, 0.05, 0.08, 0.12, 0.2)
_STOPS = (0.8, 0.6, 0.4)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one setting: medians over the prompts. speedup: of the denoising, over the exact clip's of the same prompt.

    steps_computed counts the denoising steps that were not taken over from an earlier one.
    """

    setting: Mapping[str, object]
    steps_computed: float
    denoise_s: float
    speedup: float
    likeness: Likeness


Sample = tuple[float, float, float, Likeness]  # speed-up, seconds, steps computed


class Exact(NamedTuple):
    """A clip without shortcuts, and how many seconds its denoising took."""

    seconds: float
    frames: np.ndarray


def settings_of(num_inference_steps: int) -> dict[str, dict[str, object]]:
    """What the same weights are asked for, by name: each lever by itself, the qualities, and fewer steps."""
    found: dict[str, dict[str, object]] = {}
    for threshold in _CACHES:
        found[f"step_cache {threshold:g}"] = {"step_cache": threshold}
    for stop in _STOPS:
        found[f"guidance_stop {stop:g}"] = {"guidance_stop": stop}
    for quality in QUALITIES:
        if quality != "lossless":
            found[f"quality {quality}"] = {"quality": quality}
    for share in (0.75, 0.5):
        steps = max(round(share * num_inference_steps), 1)
        found[f"{steps} steps"] = {"num_inference_steps": steps}
    return found


def run_quality_bench(options: argparse.Namespace) -> int:
    """Measure all settings on the command's flags, print a table and write the figures as JSON.

    Quantized weights are among them where torchao is installed. Without a checkpoint, of small random weights.
    ConfigError for flags that cannot be measured.
    """
    if not 1 <= options.clips <= len(PROMPTS):
        raise ConfigError(f"--clips {options.clips}: there are {len(PROMPTS)} prompts; use 1 to {len(PROMPTS)}")
    file = with_folder(options.json)
    with tempfile.TemporaryDirectory(prefix="wan-ray-bench-") as folder:
        if options.checkpoint is None:
            write_debug_checkpoint(Path(folder))

        def load(quantization: Quantization = "none") -> Renderer:
            return Renderer.from_checkpoint(
                options.checkpoint or folder,
                device=options.device or "auto",
                dtype=options.dtype,
                quantization=quantization,
            )

        renderer = load()
        requests = [_request(options, number) for number in range(options.clips)]
        shape = resolve(requests[0], renderer.variant)  # refuses what no setting could render
        device, weights = device_name(renderer.decode.device), renderer.denoise.fingerprint
        figures, exact = measure(renderer, requests, settings_of(options.steps))
        del renderer
        for quantization in _quantizations():
            free()  # the weights before these
            figures[quantization] = measure_quantized(load(quantization), quantization, requests, exact)
    write_out(sys.stdout, "\n".join(table(device, shape, figures)))
    if options.checkpoint is None:
        write_out(sys.stdout, "\nof random weights: what a shortcut saves and costs with real ones, they do not tell")
    if file is not None:
        told = {
            "device": device,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": package_versions(),
            "weights": "random" if options.checkpoint is None else weights,
            "exact": [request.model_dump(exclude_none=True) for request in requests],
            "settings": {name: asdict(found) for name, found in figures.items()},
        }
        file.write_text(json.dumps(_finite(told), indent=1, ensure_ascii=False), encoding="utf-8")
    return 0


def measure(
    renderer: Renderer, requests: Sequence[RenderRequest], settings: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, Figures], list[Exact]]:
    """The exact clips and those of each setting, prompt by prompt; a line per clip goes to stderr."""
    _warm_up(renderer, requests[0])
    samples: dict[str, list[Sample]] = {name: [] for name in settings}
    exact = []
    for request in requests:
        seconds, _, frames = _timed(renderer, request)
        exact.append(Exact(seconds, frames))
        for name, setting in settings.items():
            samples[name].append(_sample(renderer, request.model_copy(update=dict(setting)), exact[-1], name))
    return {name: _figures(settings[name], found) for name, found in samples.items()}, exact


def measure_quantized(
    renderer: Renderer, quantization: Quantization, requests: Sequence[RenderRequest], exact: Sequence[Exact]
) -> Figures:
    """The same requests as the exact clips', with weights that are quantized."""
    _warm_up(renderer, requests[0])
    pairs = zip(requests, exact, strict=True)
    return _figures({"quantization": quantization}, [_sample(renderer, *pair, quantization) for pair in pairs])


def _quantizations() -> tuple[Quantization, ...]:
    """Those that can be had here."""
    if find_spec("torchao") is not None:
        return ("int8", "float8")
    write_out(sys.stderr, 'quantized weights are left out: torchao is not installed; pip install "wan-ray[quant]"')
    return ()


def table(device: str, shape: ResolvedRequest, figures: Mapping[str, Figures]) -> Iterator[str]:
    """For a terminal."""
    yield f"{device}, {shape.variant}, {shape.width}x{shape.height}, {shape.num_frames} frames"
    yield f"medians, each against the exact clip of the same prompt and seed in {shape.num_inference_steps} steps:\n"
    yield f"{'':<20}{'computed':>9}{'denoise, s':>12}{'speed-up':>10}{'PSNR, dB':>10}{'SSIM':>8}{'VMAF':>7}"
    for name, found in figures.items():
        like = found.likeness
        yield (
            f"{name:<20}{found.steps_computed:>9.0f}{found.denoise_s:>12.2f}{found.speedup:>9.2f}x"
            f"{like.psnr_db:>10.1f}{like.ssim:>8.3f}{like.vmaf:>7.1f}"
        )


def _request(options: argparse.Namespace, number: int) -> RenderRequest:
    width, height = size_of(options.size) if options.size else (None, None)
    row = {
        "id": f"quality-{number}",
        "prompt": PROMPTS[number],
        "width": width,
        "height": height,
        "num_frames": options.frames,
        "num_inference_steps": options.steps,
        "seed": number,
    }
    return parse_row(row).request


def _warm_up(renderer: Renderer, request: RenderRequest) -> None:
    """Load what loads at first use."""
    _timed(renderer, request.model_copy(update={"num_inference_steps": 1}))


def _sample(renderer: Renderer, request: RenderRequest, exact: Exact, name: str) -> Sample:
    seconds, computed, frames = _timed(renderer, request)
    write_out(sys.stderr, f"{request.id}, {name}: {seconds:.2f} s, exact {exact.seconds:.2f} s")
    return exact.seconds / seconds, seconds, computed, likeness(frames, exact.frames)


def _timed(renderer: Renderer, request: RenderRequest) -> tuple[float, float, np.ndarray]:
    """Seconds of denoising, steps computed, frames."""
    resolved = resolve(request, renderer.variant)
    encoded = renderer.encode(Item(name="", id=resolved.id, row=None, request=resolved, prompt=resolved.prompt))
    began = perf_counter()
    item = renderer.denoise(encoded)
    seconds = perf_counter() - began
    computed, *_ = item.rendered_on.get("steps_computed", str(resolved.num_inference_steps)).split()
    frames, _ = renderer.decode.with_frames(item, lambda chunks: np.concatenate(list(chunks)))
    return seconds, float(computed), frames


def _figures(setting: Mapping[str, object], samples: Sequence[Sample]) -> Figures:
    speedups, seconds, computed, alike = zip(*samples, strict=True)
    medians = {name: statistics.median(getattr(one, name) for one in alike) for name in ("psnr_db", "ssim", "vmaf")}
    return Figures(
        setting=setting,
        steps_computed=statistics.median(computed),
        denoise_s=statistics.median(seconds),
        speedup=statistics.median(speedups),
        likeness=Likeness(**medians),
    )


def _finite(value: object) -> object:
    """JSON knows no infinity, the PSNR of equal clips."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
