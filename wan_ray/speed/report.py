"""`wan-ray bench --engine`: measure, print a table, write the figures as JSON."""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

import torch

from wan_ray.errors import ConfigError
from wan_ray.model.attention_kernels import chosen_kernels
from wan_ray.speed.account import Account
from wan_ray.speed.clock import device_name
from wan_ray.speed.engine import STEP, Figure, Measured, measure
from wan_ray.speed.random_models import Sizes
from wan_ray.speed.settings import Settings, engine_command, with_folder, write_out
from wan_ray.version import installed

T, G = 1e12, 1e9


def run_engine_bench(options: argparse.Namespace) -> int:
    """0; ConfigError when the settings cannot be measured here."""
    settings, file = Settings.from_options(options), with_folder(options.json)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; use --device cpu")
    measured = measure(settings, lambda name: write_out(sys.stderr, f"measuring: {name}"))
    report = as_json(settings, measured, command=engine_command(options))
    write_out(sys.stdout, "\n".join(table(settings, measured)))
    if file is not None:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def as_json(settings: Settings, measured: Measured, *, command: str) -> dict[str, object]:
    """All that was measured, where, when and how to do it again."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(measured.device),
        "num_threads": torch.get_num_threads() if measured.device.type == "cpu" else None,
        "versions": _versions(),
        "variant": settings.variant.name,
        "width": settings.width,
        "height": settings.height,
        "num_frames": settings.num_frames,
        "dtype": str(measured.dtype).removeprefix("torch."),
        "sizes": asdict(measured.sizes),
        "product_flops_per_s": measured.product_rate,
        "copy_bytes_per_s": measured.copy_rate,
        "figures": {figure.name: _figure_json(figure, measured) for figure in measured.figures},
        "is_whole_model": settings.num_layers is None,
        "reckoned_step_ms": _reckoned(settings, measured),
        "block_accounts": {
            name: {**asdict(account), "least_ms": account.least_ms} for name, account in measured.accounts.items()
        },
        "attention_kernels": chosen_kernels(),
        "compiled_by_another_row": measured.compiled_by_another_row,
        "not_measured": measured.lacking,
    }


def table(settings: Settings, measured: Measured) -> Iterator[str]:
    """The report for a terminal, line by line."""
    dit, dtype = measured.sizes.dit, str(measured.dtype).removeprefix("torch.")
    yield f"{device_name(measured.device)}, torch {torch.__version__}, {dtype}"
    yield (
        f"{settings.variant.name} at {settings.width}x{settings.height}x{settings.num_frames}, random weights: "
        f"{dit.num_layers} layers of {dit.dim}"
        + (f", {settings.quantization}" if settings.quantization != "none" else "")
    )
    yield f"best product {measured.product_rate / T:.2f} TFLOP/s, best copy {measured.copy_rate / G:.1f} GB/s"
    yield ""
    yield f"{'':<28}{'ms':>11}{'TFLOP/s':>10}{'of best':>9}{'GB/s':>9}{'peak GB':>9}{'predicted':>11}"
    for figure in measured.figures:
        yield _figure_row(figure, measured)
    reckoned = _reckoned(settings, measured)
    if reckoned is not None:
        layers = Sizes.of(settings.variant, None).dit.num_layers
        yield f"{f'step of {layers} layers, reckoned':<28}{reckoned:>11.2f}"
    for part, why in measured.lacking.items():
        yield f"not measured: {part} ({why})"
    if chosen_kernels():
        yield f"attention by {chosen_kernels()}"
    if measured.compiled_by_another_row is not None:
        yield f"kernels compiled by another row of this shape: {measured.compiled_by_another_row}"
    for name, account in measured.accounts.items():
        yield from _account_rows(name, account)


def _account_rows(name: str, account: Account) -> Iterator[str]:
    title = f"one DiT block by {name}"
    yield ""
    yield f"{title:<28}{'ms':>11}{'share':>10}{'':>9}{'GB/s':>9}{'least ms':>20}"
    for line in account.lines:
        rate = line.moved_bytes / G / (line.ms / 1000) if line.ms else 0
        yield f"  {line.kind:<26}{line.ms:>11.3f}{line.share:>10.1%}{'':>9}{rate:>9.1f}{line.least_ms:>20.3f}"
    yield f"  {'all':<26}{account.ms:>11.3f}{1:>10.1%}{'':>9}{'':>9}{account.least_ms:>20.3f}"
    for kernel in account.kernels:
        yield f"    {kernel.ms:>9.3f} ms  {kernel.calls:>3} x {kernel.name[:90]}"


def _figure_json(figure: Figure, measured: Measured) -> dict[str, object]:
    seconds = figure.timed.ms / 1000
    return {
        **asdict(figure.timed),
        "moved_bytes_per_s": figure.timed.moved_bytes / seconds,
        "flops": figure.flops,
        "flops_per_s": None if figure.flops is None else figure.flops / seconds,
        "utilisation": _utilisation(figure, measured),
        "predicted_bytes": figure.predicted_bytes,
    }


def _figure_row(figure: Figure, measured: Measured) -> str:
    seconds, used = figure.timed.ms / 1000, _utilisation(figure, measured)
    cells = (
        f"{figure.timed.ms:.2f}",
        "" if figure.flops is None else f"{figure.flops / seconds / T:.2f}",
        "" if used is None else f"{used:.1%}",
        f"{figure.timed.moved_bytes / seconds / G:.1f}",
        "" if figure.timed.peak_bytes is None else f"{figure.timed.peak_bytes / G:.2f}",
        "" if figure.predicted_bytes is None else f"{figure.predicted_bytes / G:.2f}",
    )
    return f"{figure.name:<28}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (11, 10, 9, 9, 9, 11), strict=True))


def _utilisation(figure: Figure, measured: Measured) -> float | None:
    """Of the best product rate in the same dtype."""
    if figure.flops is None or (figure.float32 and measured.dtype != torch.float32):
        return None
    return figure.flops / (figure.timed.ms / 1000) / measured.product_rate


def _reckoned(settings: Settings, measured: Measured) -> float | None:
    """Of a step with all layers, where only some were measured."""
    if settings.num_layers is None or settings.variant.architecture is None or measured.figure(STEP) is None:
        return None
    return measured.reckoned_step_ms(settings.variant.architecture)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, **installed("triton", "transformers")}
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found
