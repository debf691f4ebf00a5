"""Time and memory of one piece of work, the rates a device reaches at best, and what machine this is."""

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from wan_ray.model.attention_kernels import milliseconds
from wan_ray.speed.traffic import Traffic

_MIN_RUNS, _MAX_RUNS, _ENOUGH_S = 3, 20, 2.0
# Sides of square matrix products, of which the fastest counts; and bytes of one copy.
_SIDES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024)}
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """ms: the samples' median. moved_bytes: as Traffic counts them. peak_bytes: None where torch does not tell."""

    ms: float
    samples_ms: list[float]
    moved_bytes: int
    peak_bytes: int | None


@torch.inference_mode()
def timed(work: Work, device: torch.device) -> Timed:
    """Of 3 to 20 runs, in about 2 seconds if that suffices, after one that is not counted."""
    on_gpu = device.type == "cuda"
    with Traffic() as traffic:
        work()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    samples: list[float] = []
    while len(samples) < _MIN_RUNS or (len(samples) < _MAX_RUNS and sum(samples) < _ENOUGH_S * 1000):
        samples.append(milliseconds(work, device))
    return Timed(
        ms=statistics.median(samples),
        samples_ms=samples,
        moved_bytes=traffic.moved_bytes,
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few large square products of normally distributed numbers."""
    best = 0.0
    for side in _SIDES[device.type]:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        found = timed(lambda a=a, b=b: a @ b, device)
        best = max(best, 2 * side**3 / (min(found.samples_ms) / 1000))
    return best


def copy_rate(device: torch.device) -> float:
    """Bytes/s read and written by one large copy on the device."""
    source = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found = timed(lambda: target.copy_(source), device)
    return 2 * source.nbytes / (min(found.samples_ms) / 1000)


def device_name(device: torch.device) -> str:
    """The GPU's, or the CPU's where Linux tells it, else the platform's word for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
