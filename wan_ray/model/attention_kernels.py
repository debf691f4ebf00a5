"""Attention on a GPU: of the kernels that are there, the fastest for a kind of call, as measured at its first one."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

logger = logging.getLogger(__name__)

# Of q [B, N, H, D], k and v [B, L, H, D]: what the queries attended to, [B, N, H, D].
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

# In this order a kernel is preferred to those after it, unless one is faster by more than measuring is unsure of: so
# that workers on equal GPUs choose alike, and round alike.
_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_UNSURE = 1.05
_RUNS, _PROBED_QUERIES = 3, 4096  # enough to fill a GPU
_FAR = 0.02  # relative difference from torch's own choice beyond which a kernel is not trusted: bfloat16 has 0.004


class Kind(NamedTuple):
    """Calls that share a choice. Lengths are rounded up to powers of two."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    queries: int
    keys: int


_chosen: dict[Kind, str] = {}


def attend_by_best(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """Attention over all keys by the kernel that is best for this kind of call; the first one measures them."""
    kind = Kind(
        q_BNHD.device, q_BNHD.dtype, q_BNHD.shape[3], _power_of_two(q_BNHD.shape[1]), _power_of_two(k_BLHD.shape[1])
    )
    if kind not in _chosen:
        _chosen[kind] = _choose(kind, q_BNHD, k_BLHD, v_BLHD)
    return attention_kernels()[_chosen[kind]](q_BNHD, k_BLHD, v_BLHD)


def chosen_kernels() -> str:
    """Names of all that this process has chosen so far, with plus signs between."""
    return "+".join(sorted(set(_chosen.values())))


@lru_cache
def attention_kernels() -> Mapping[str, Kernel]:
    """All that can be tried, the preferred first; which of them work depends on GPU, dtype and sizes."""
    kernels = {name: _sdpa(backend) for name, backend in _BACKENDS.items()}
    try:
        flash_3 = import_module("flash_attn_interface").flash_attn_func
    except (ImportError, AttributeError, OSError):  # not installed, or not for this torch
        return {**kernels, "torch": torch_attention}
    return {"flash-3": _flash_3(flash_3), **kernels, "torch": torch_attention}


def torch_attention(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """By whichever kernel torch takes by itself."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BLHD, v_BLHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _sdpa(backend: SDPBackend) -> Kernel:
    def kernel(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return torch_attention(q_BNHD, k_BLHD, v_BLHD)

    return kernel


def _flash_3(function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Kernel:
    def kernel(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        out = function(q_BNHD, k_BLHD, v_BLHD)
        return out[0] if isinstance(out, tuple) else out  # earlier releases add the log-sum-exp

    return kernel


def _choose(kind: Kind, q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> str:
    probed = q_BNHD[:, :_PROBED_QUERIES], k_BLHD, v_BLHD
    measured, refused = measured_kernels(*probed)
    best = min(measured.values())
    name = next(name for name, ms in measured.items() if ms <= best * _UNSURE)
    logger.info(
        "attention kernel: kernel=%s head_dim=%d dtype=%s queries=%d keys=%d device=%s ms=%s refused=%s",
        name,
        kind.head_dim,
        kind.dtype,
        kind.queries,
        kind.keys,
        kind.device,
        {name: round(ms, 3) for name, ms in measured.items()},
        refused,
    )
    return name


@torch.no_grad()
def measured_kernels(q_BNHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Milliseconds of those that work on these tensors, in order of preference; why each of the others does not.

    torch's own choice counts only where no other works. OutOfMemoryError as torch raises it.
    """
    wanted = torch_attention(q_BNHD, k_BLHD, v_BLHD).float()
    measured: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, kernel in attention_kernels().items():
        if name == "torch" and measured:
            continue
        try:
            error = (kernel(q_BNHD, k_BLHD, v_BLHD).float() - wanted).norm() / wanted.norm()
            if not error < _FAR:
                refused[name] = f"it differs by {error:.1e}"
                continue
            work = partial(kernel, q_BNHD, k_BLHD, v_BLHD)
            measured[name] = min(milliseconds(work, q_BNHD.device) for _ in range(_RUNS))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, AssertionError) as why:  # not for this GPU, dtype or head width
            refused[name] = f"{why}"[:200]
    return measured, refused


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one run, by the device's own clock where that is a GPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _power_of_two(length: int) -> int:
    return 1 << (length - 1).bit_length()
