"""The DiT's element-wise work as Triton kernels: each reads its input once and writes its result once.

They round where wan_ray.model.fused does without them: all is float32 but for what is named there. One program has one
token's row, whole; widths need not be powers of two. No kernel takes a number that changes with the clip, so one
compilation serves rows of any shape. Operators of torch's, so that its profiler tells them by name. N tokens, D width,
P pairs of one head.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

Launch = TypeVar("Launch", bound=Callable[..., Tensor])
# Numbers are passed for tl.constexpr, which its annotations do not tell.
_jit: Callable[[Any], Any] = triton.jit


def _operator(launch: Launch) -> Launch:
    """As an operator of torch's, which dispatches to it."""
    return cast(Launch, custom_op(f"wan_ray::{launch.__name__}", mutates_args=())(launch))


@_jit
def _layer_norm_kernel(
    x_ptr, scale_ptr, shift_ptr, out_ptr, eps: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0)
    centred = tl.where(inside, x - tl.sum(x, axis=0) / WIDTH, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    scale = tl.load(scale_ptr + columns, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + columns, mask=inside, other=0.0)
    tl.store(out_ptr + row + columns, (shift + normed * scale).to(out_ptr.dtype.element_ty), mask=inside)


@_jit
def _gate_kernel(x_ptr, y_ptr, gate_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row + columns, mask=inside)
    y = tl.load(y_ptr + row + columns, mask=inside).to(tl.float32)
    gate = tl.load(gate_ptr + columns, mask=inside)
    tl.store(out_ptr + row + columns, x + y * gate, mask=inside)


@_jit
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    turns_ptr,
    out_ptr,
    eps: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,  # of one head; 0: nothing is turned
):
    token = tl.program_id(0).to(tl.int64)
    row = (tl.program_id(1) * tl.num_programs(0) + token) * WIDTH
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    normed = x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps) * weight
    out = normed.to(out_ptr.dtype.element_ty)
    if PAIRS > 0:
        real, imaginary = tl.split(tl.reshape(out.to(tl.float32), (BLOCK // 2, 2)))
        pairs = tl.arange(0, BLOCK // 2)
        turn = turns_ptr + (token * PAIRS + pairs % PAIRS) * 2
        cosine = tl.load(turn, mask=pairs < WIDTH // 2, other=0.0)
        sine = tl.load(turn + 1, mask=pairs < WIDTH // 2, other=0.0)
        turned = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
        out = tl.reshape(turned, (BLOCK,)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row + columns, out, mask=inside)


@_operator
def layer_norm(x_BND: Tensor, scale_D: Tensor, shift_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm of a float32 stream, times scale, plus shift, rounded to dtype."""
    x, out = x_BND.contiguous(), torch.empty(x_BND.shape, dtype=dtype, device=x_BND.device)
    width = x.shape[-1]
    _layer_norm_kernel[(x.numel() // width,)](
        x, scale_D.contiguous(), shift_D.contiguous(), out, eps, width, **_options(width)
    )
    return out


@_operator
def gate(x_BND: Tensor, y_BND: Tensor, gate_D: Tensor) -> Tensor:
    """The float32 stream x plus y times gate."""
    x, out = x_BND.contiguous(), torch.empty(x_BND.shape, dtype=x_BND.dtype, device=x_BND.device)
    width = x.shape[-1]
    _gate_kernel[(x.numel() // width,)](x, y_BND.contiguous(), gate_D.contiguous(), out, width, **_options(width))
    return out


@_operator
def rms_norm(x_BND: Tensor, weight_D: Tensor, turns_NP2: Tensor | None, eps: float) -> Tensor:
    """Root-mean-square norm over the width; then pairs of each head turned by cosines and sines, if they are given."""
    x, out = x_BND.contiguous(), torch.empty(x_BND.shape, dtype=x_BND.dtype, device=x_BND.device)
    batch, tokens, width = x.shape
    turns = weight_D if turns_NP2 is None else turns_NP2.contiguous()
    pairs = 0 if turns_NP2 is None else turns_NP2.shape[1]
    _rms_norm_kernel[(tokens, batch)](x, weight_D, turns, out, eps, width, PAIRS=pairs, **_options(width))
    return out


def num_compiled() -> int:
    """Kernels compiled, or read from Triton's cache, by this process."""
    kernels = (_layer_norm_kernel, _gate_kernel, _rms_norm_kernel)
    return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())


def _options(width: int) -> dict[str, int]:
    """Without fused multiply-adds, so that each product and sum rounds as in PyTorch."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 512)), "enable_fp_fusion": False}
