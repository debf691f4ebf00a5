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
from pathlib import Path
from time import perf_counter

import numpy as np

from wan_ray.errors import ConfigError
from wan_ray.media.likeness import Likeness, likeness
from wan_ray.model.debug import write_debug_checkpoint
from wan_ray.renderer import Renderer
from wan_ray.request import RenderRequest, parse_row
from wan_ray.resolved import resolve
from wan_ray.sample import ROWS
from wan_ray.speed.clock import device_name
from wan_ray.speed.settings import size_of, with_folder, write_out
from wan_ray.stages.items import Item
from wan_ray.stages.publish import package_versions
from wan_ray.variants import QUALITIES

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


def settings_of(num_inference_steps: int) -> dict[str, dict[str, object]]:
    """What is compared with the exact clip, by name: each lever by itself, the qualities, and fewer steps."""
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

    ConfigError for flags that cannot be measured. Without a checkpoint, of small random weights.
    """
    if not 1 <= options.clips <= len(PROMPTS):
        raise ConfigError(f"--clips {options.clips}: there are {len(PROMPTS)} prompts; use 1 to {len(PROMPTS)}")
    file = with_folder(options.json)
    with tempfile.TemporaryDirectory(prefix="wan-ray-bench-") as folder:
        if options.checkpoint is None:
            write_debug_checkpoint(Path(folder))
        checkpoint = options.checkpoint or folder
        renderer = Renderer.from_checkpoint(checkpoint, device=options.device or "auto", dtype=options.dtype)
    requests = [_request(options, number) for number in range(options.clips)]
    resolve(requests[0], renderer.variant)  # refuses what no setting could render
    figures = measure(renderer, requests, settings_of(options.steps))
    write_out(sys.stdout, "\n".join(table(renderer, requests[0], figures)))
    if options.checkpoint is None:
        write_out(sys.stdout, "\nof random weights: what a shortcut saves and costs with real ones, they do not tell")
    if file is not None:
        told = {
            "device": device_name(renderer.decode.device),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": package_versions(),
            "weights": "random" if options.checkpoint is None else renderer.denoise.fingerprint,
            "exact": [request.model_dump(exclude_none=True) for request in requests],
            "settings": {name: asdict(found) for name, found in figures.items()},
        }
        file.write_text(json.dumps(_finite(told), indent=1, ensure_ascii=False), encoding="utf-8")
    return 0


def measure(
    renderer: Renderer, requests: Sequence[RenderRequest], settings: Mapping[str, Mapping[str, object]]
) -> dict[str, Figures]:
    """The exact clips and those of each setting, prompt by prompt; a line per clip goes to stderr."""
    _timed(renderer, requests[0].model_copy(update={"num_inference_steps": 1}))  # loads what loads at first use
    samples: dict[str, list[tuple[float, float, float, Likeness]]] = {name: [] for name in settings}
    for number, request in enumerate(requests, 1):
        exact_s, _, exact = _timed(renderer, request)
        for name, setting in settings.items():
            seconds, computed, frames = _timed(renderer, request.model_copy(update=dict(setting)))
            samples[name].append((exact_s / seconds, seconds, computed, likeness(frames, exact)))
            write_out(sys.stderr, f"prompt {number} of {len(requests)}, {name}: {seconds:.2f} s, exact {exact_s:.2f} s")
    return {name: _figures(settings[name], found) for name, found in samples.items()}


def table(renderer: Renderer, request: RenderRequest, figures: Mapping[str, Figures]) -> Iterator[str]:
    """For a terminal."""
    shape = resolve(request, renderer.variant)
    name = f"{device_name(renderer.decode.device)}, {shape.variant}"
    yield f"{name}, {shape.width}x{shape.height}, {shape.num_frames} frames"
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


def _figures(setting: Mapping[str, object], samples: Sequence[tuple[float, float, float, Likeness]]) -> Figures:
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
