"""Norms, modulation, rotation and gates of a DiT block: what is not a product or attention.

On a GPU, and where nothing is trained, each is one Triton kernel that reads and writes once, if Triton is there;
elsewhere it is plain PyTorch. Both compute in float32 and round to 16 bits at the same places. B batch, N tokens,
D width, H heads.
"""

import logging
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan_ray.model.rope import rotary_table, rotate

logger = logging.getLogger(__name__)

EPS = 1e-6
_plain: ContextVar[bool] = ContextVar("plain", default=False)


class Kernels(Protocol):
    """What wan_ray.model.triton_kernels has."""

    def layer_norm(self, x_BND: Tensor, scale_D: Tensor, shift_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """Norm, times scale, plus shift, in dtype."""
        ...

    def gate(self, x_BND: Tensor, y_BND: Tensor, gate_D: Tensor) -> Tensor:
        """x plus y times gate."""
        ...

    def rms_norm(self, x_BND: Tensor, weight_D: Tensor, turns_NP2: Tensor | None, eps: float) -> Tensor:
        """Norm, and turned if there are turns."""
        ...


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Layer norm without weights of a float32 stream, then scale and shift by the time step; in dtype."""
    kernels = _kernels(x_BND)
    if kernels is not None:
        return kernels.layer_norm(x_BND, (1 + scale_B1D).flatten(), shift_B1D.flatten(), EPS, dtype)
    return torch.addcmul(shift_B1D, F.layer_norm(x_BND, x_BND.shape[-1:], eps=EPS), 1 + scale_B1D).to(dtype)


def layer_norm(x_BND: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """Layer norm of a float32 stream with the norm's weights; in dtype."""
    kernels = _kernels(x_BND)
    if kernels is not None:
        return kernels.layer_norm(x_BND, norm.weight, norm.bias, EPS, dtype)
    return norm(x_BND).to(dtype)


def gate(x_BND: Tensor, y_BND: Tensor, gate_B1D: Tensor) -> Tensor:
    """The float32 stream x and, times gate, what a part of the block adds to it."""
    kernels = _kernels(x_BND)
    if kernels is not None:
        return kernels.gate(x_BND, y_BND, gate_B1D.flatten())
    return x_BND + y_BND * gate_B1D


def rms_norm(x_BND: Tensor, weight_D: Tensor) -> Tensor:
    """Root-mean-square norm over the full width, all heads together; dtype of x."""
    kernels = _kernels(x_BND)
    if kernels is not None:
        return kernels.rms_norm(x_BND, weight_D, None, EPS)
    return F.rms_norm(x_BND.float(), weight_D.shape, weight_D, EPS).to(x_BND.dtype)


def rms_norm_rotate(x_BND: Tensor, weight_D: Tensor, rotary: Tensor, num_heads: int) -> Tensor:
    """The same, then the heads' channels turned by their token's place, [B, N, H, D / H]; dtype of x."""
    kernels = _kernels(x_BND)
    if kernels is not None:
        turned = kernels.rms_norm(x_BND, weight_D, torch.view_as_real(rotary[:, 0]), EPS)
        return turned.unflatten(-1, (num_heads, -1))
    return rotate(rms_norm(x_BND, weight_D).unflatten(-1, (num_heads, -1)), rotary)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Without Triton's kernels, to compare with."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def elementwise_kernels(device: torch.device) -> str:
    """What does this work there when nothing is trained: "triton" or "torch"."""
    return "torch" if device.type != "cuda" or _on_gpu(device) is None else "triton"


def num_compiled(device: torch.device) -> int:
    """Kernels for that device which this process has compiled, or read from Triton's cache."""
    if elementwise_kernels(device) == "torch":
        return 0
    from wan_ray.model import triton_kernels

    return triton_kernels.num_compiled()


def _kernels(x: Tensor) -> Kernels | None:
    if not x.is_cuda or torch.is_grad_enabled() or _plain.get():
        return None
    return _on_gpu(x.device)


@lru_cache
def _on_gpu(device: torch.device) -> Kernels | None:
    """Triton's kernels where they compile and agree with plain PyTorch on that GPU; the log says why not."""
    try:
        from triton.errors import TritonError

        from wan_ray.model import triton_kernels
    except ImportError as error:
        logger.info("element-wise work: kernels=torch device=%s why=%s", device, error)
        return None
    try:
        found = disagreement(triton_kernels, device)
    # Without a C compiler, for one, Triton cannot start a kernel.
    except (TritonError, subprocess.SubprocessError, RuntimeError, OSError) as error:
        found = f"{type(error).__name__}: {error}"[:500]
    if found is not None:
        logger.warning("element-wise work: kernels=torch device=%s why=%s", device, found)
        return None
    logger.info("element-wise work: kernels=triton device=%s", device)
    return triton_kernels


@torch.inference_mode()
def disagreement(kernels: Kernels, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> str | None:
    """Which kernel differs from plain PyTorch on a small input by more than rounding in dtype, if one does."""
    width, num_heads, tokens = 192, 3, 5
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, tokens, width, generator=random).to(device) for _ in range(2))
    scale, shift = (torch.randn(1, 1, width, generator=random).to(device) for _ in range(2))
    weight, y = scale.flatten(), y.to(dtype)
    rotary = rotary_table((tokens, 1, 1), width // num_heads, device)
    with plain_pytorch():
        wanted = {
            "layer_norm": modulate(x, shift, scale, dtype),
            "gate": gate(x, y, scale),
            "rms_norm": rms_norm(y, weight),
            "rms_norm with turns": rms_norm_rotate(y, weight, rotary, num_heads).flatten(2),
        }
    found = {
        "layer_norm": kernels.layer_norm(x, 1 + weight, shift.flatten(), EPS, dtype),
        "gate": kernels.gate(x, y, weight),
        "rms_norm": kernels.rms_norm(y, weight, None, EPS),
        "rms_norm with turns": kernels.rms_norm(y, weight, torch.view_as_real(rotary[:, 0]), EPS),
    }
    for name, tensor in wanted.items():
        error = (found[name].float() - tensor.float()).norm() / tensor.float().norm()
        if not error < torch.finfo(dtype).eps:
            return f"{name} differs by {error:.1e}"
    return None
