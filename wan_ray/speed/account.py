"""What the time of one DiT block goes to: torch's profile of it, by kind of work, beside what the device could do."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from wan_ray.costs.flops import PassWork
from wan_ray.speed.traffic import Traffic, labelled

_RUNS = 3
_SHOWN = 12  # kernels of a GPU

PRODUCTS, ATTENTION, NORMS, ROTARY = "products", "attention", "norms and modulation", "rotary"
GATES, ACTIVATION, COPIES, OTHER = "gates and residuals", "activation", "copies and casts", "other"
KINDS = (PRODUCTS, ATTENTION, NORMS, ROTARY, GATES, ACTIVATION, COPIES, OTHER)

_KINDS_OF_OPS = {
    **dict.fromkeys(("linear", "mm", "addmm", "bmm", "matmul", "convolution"), PRODUCTS),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"), NORMS),
    **dict.fromkeys(("to", "_to_copy", "copy_", "clone", "contiguous", "pad", "constant_pad_nd", "cat"), COPIES),
    "gelu": ACTIVATION,
    "gate": GATES,  # Triton's; its norms have PyTorch's names, and a rotation is in one of them
}
# Of the operators that are none of those, by the function of wan_ray.model that calls them.
_KINDS_OF_FUNCTIONS = {
    "attend": ATTENTION,
    "torch_attention": ATTENTION,
    "_flash_3.<locals>.kernel": ATTENTION,
    "modulate": NORMS,
    "rms_norm": NORMS,
    "rotate": ROTARY,
    "gate": GATES,
    "Block.forward": GATES,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One kind. least_ms: at the device's best rates, for as many FLOPs and bytes as its operators have."""

    kind: str
    ms: float
    share: float
    moved_bytes: int
    least_ms: float


@dataclass(frozen=True, kw_only=True)
class OpTime:
    """One operator under one function of the model, in one run of the block."""

    kind: str
    function: str
    op: str
    calls: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """One kernel of a GPU, in one run of the block."""

    name: str
    calls: int
    ms: float


@dataclass(frozen=True, kw_only=True)
class Account:
    """ms: of one run, as profiled; of a GPU the sum of its kernels' times. lines sum to it; kernels: the longest."""

    ms: float
    lines: list[Line]
    ops: list[OpTime]
    kernels: list[KernelTime]

    @property
    def least_ms(self) -> float:
        """With every kind at the device's best rates."""
        return sum(line.least_ms for line in self.lines)


@torch.inference_mode()
def account_of_block(
    block: Callable[[], object], work: PassWork, device: torch.device, *, product_rate: float, copy_rate: float
) -> Account:
    """Of a few runs after one that is not profiled; work: the block's FLOPs, rates per second."""
    on_gpu = device.type == "cuda"
    block()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled, Traffic(labels=True) as traffic:
        for _ in range(_RUNS):
            block()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = profiled.events() or []
    ops = _ops(events, on_gpu=on_gpu)
    kernels = _kernels(events) if on_gpu else []
    ms_by_kind, bytes_by_kind = defaultdict[str, float](float), defaultdict[str, int](int)
    for op in ops:
        ms_by_kind[op.kind] += op.ms
    for label, moved in traffic.moved_by_label.items():
        found = labelled(label)
        bytes_by_kind[_kind(*found) if found else OTHER] += moved // _RUNS
    whole = sum(ms_by_kind.values())
    if on_gpu:  # kernels that no operator has started are in no range
        whole = max(whole, sum(kernel.ms for kernel in kernels))
        ms_by_kind[OTHER] += whole - sum(ms_by_kind.values())
    flops = {PRODUCTS: work.linear, ATTENTION: work.attention}
    lines = [
        Line(
            kind=kind,
            ms=ms_by_kind[kind],
            share=ms_by_kind[kind] / whole,
            moved_bytes=bytes_by_kind[kind],
            least_ms=1000 * max(flops.get(kind, 0) / product_rate, bytes_by_kind[kind] / copy_rate),
        )
        for kind in KINDS
    ]
    return Account(ms=whole, lines=lines, ops=ops, kernels=kernels[:_SHOWN])


def _ops(events: list, *, on_gpu: bool) -> list[OpTime]:
    """The operators, the longest first."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        name = labelled(event.name)
        if name is not None and event.device_type == DeviceType.CPU:
            found[name].append((_kernels_us(event, event.name) if on_gpu else event.cpu_time_total) / 1000)
    ops = [
        OpTime(kind=_kind(*name), function=name[0], op=name[1], calls=len(times) // _RUNS, ms=sum(times) / _RUNS)
        for name, times in found.items()
    ]
    return sorted(ops, key=lambda op: -op.ms)


def _kernels_us(event: Any, label: str) -> float:
    """Of all kernels started under an event. A range's span on the GPU may be among them, by the range's name."""
    own = sum(kernel.duration for kernel in event.kernels if kernel.name != label)
    return own + sum(_kernels_us(child, label) for child in event.cpu_children)


def _kernels(events: list) -> list[KernelTime]:
    """A GPU's kernels, copies among them, the longest first; a range also shows on the GPU, and is none."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.device_type == DeviceType.CUDA and labelled(event.name) is None:
            found[event.name].append(event.device_time_total / 1000)
    kernels = [KernelTime(name=name, calls=len(times) // _RUNS, ms=sum(times) / _RUNS) for name, times in found.items()]
    return sorted(kernels, key=lambda kernel: -kernel.ms)


def _kind(function: str, op: str) -> str:
    if "attention" in op:
        return ATTENTION
    return _KINDS_OF_OPS.get(op) or _KINDS_OF_FUNCTIONS.get(function, OTHER)
