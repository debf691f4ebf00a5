"""Runs Triton's kernels by Triton's interpreter, on the CPU: prints how far each is from plain PyTorch, as JSON.

In a process of its own, for TRITON_INTERPRET is read when the kernels are defined.
"""

import json
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from wan_ray.model import triton_kernels as kernels
from wan_ray.model.fused import EPS, disagreement
from wan_ray.model.rope import rotary_table, rotate

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def apart(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """The largest difference over the largest value, and the share of values that differ at all."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    found, wanted = found.float(), wanted.float()
    largest = ((found - wanted).abs().max() / wanted.abs().max()).item()
    return {"largest": largest, "share": (found != wanted).float().mean().item()}


def compare(dtype: torch.dtype, width: int, num_heads: int, batch: int, tokens: int) -> dict[str, dict[str, float]]:
    random = torch.Generator().manual_seed(width)
    x = 3 * torch.randn(batch, tokens, width, generator=random) + 1
    y = torch.randn(batch, tokens, width, generator=random).to(dtype)
    scale, shift = torch.randn(2, 1, 1, width, generator=random)
    weight = torch.randn(width, generator=random)
    rotary = rotary_table((tokens, 1, 1), width // num_heads, torch.device("cpu"))
    modulated = torch.addcmul(shift, F.layer_norm(x, (width,), eps=EPS), 1 + scale).to(dtype)
    normed = F.rms_norm(y.float(), (width,), weight, EPS).to(dtype)
    turned = rotate(normed.unflatten(-1, (num_heads, -1)), rotary).flatten(2)
    turns = torch.view_as_real(rotary[:, 0])
    return {
        "modulate": apart(kernels.layer_norm(x, (1 + scale).flatten(), shift.flatten(), EPS, dtype), modulated),
        "gate": apart(kernels.gate(x, y, scale.flatten()), x + y * scale),
        "norm": apart(kernels.rms_norm(y, weight, None, EPS), normed),
        "norm and turn": apart(kernels.rms_norm(y, weight, turns, EPS), turned),
    }


def main() -> None:
    report = {}
    for name, dtype in DTYPES.items():
        for width, num_heads, batch, tokens in ((192, 3, 2, 7), (1536, 12, 1, 3), (5120, 40, 1, 2), (96, 4, 3, 1)):
            report[f"{name} {width}"] = compare(dtype, width, num_heads, batch, tokens)
    report["checked"] = [disagreement(kernels, torch.device("cpu"), dtype) for dtype in DTYPES.values()]
    json.dump(report, sys.stdout)


main()
