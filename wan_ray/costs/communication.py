"""What the ranks of a gang send each other in a forward pass, and the time of it that computing does not hide."""

from dataclasses import dataclass

from wan_ray.costs.flops import num_blocks
from wan_ray.costs.hardware import GPU
from wan_ray.costs.memory import dit_parameters
from wan_ray.degrees import Degrees
from wan_ray.variants import DiTArchitecture

# What of a ring's hops and of a gather of weights runs beside the computing; assumed, as fits the published times.
_RING_HIDDEN, _FSDP_HIDDEN = 0.9, 0.8


@dataclass(frozen=True, kw_only=True)
class PassBytes:
    """Sent by each GPU in one pass. exchange: tokens for heads and back. ring: keys and values. weights: FSDP's."""

    exchange: float
    ring: float
    weights: float
    gather: float


def pass_bytes(
    architecture: DiTArchitecture, num_tokens: int, *, degrees: Degrees, fsdp: bool = False, dtype_bytes: int = 2
) -> PassBytes:
    """Of one pass over a clip of so many tokens."""
    blocks, tokens = num_blocks(architecture), -(-num_tokens // degrees.sequence)
    one = tokens * architecture.dim * dtype_bytes
    ranks = degrees.world_size
    weights = dit_parameters(architecture).num_bytes(dtype_bytes) * (ranks - 1) / ranks if fsdp else 0.0
    return PassBytes(
        exchange=blocks * 4 * one * (degrees.ulysses - 1) / degrees.ulysses,
        ring=blocks * 2 * one * (degrees.ring - 1),
        weights=weights,
        gather=tokens * 4 * architecture.out_channels * 4 * (degrees.sequence - 1),
    )


def exposed_seconds(
    architecture: DiTArchitecture,
    num_tokens: int,
    *,
    degrees: Degrees,
    gpu: GPU,
    gpus_per_node: int,
    computing_s: float,
    fsdp: bool = False,
    dtype_bytes: int = 2,
) -> float:
    """Seconds that one pass takes longer because of what is sent; computing_s is what there is to hide behind."""
    sent = pass_bytes(architecture, num_tokens, degrees=degrees, fsdp=fsdp, dtype_bytes=dtype_bytes)
    blocks = num_blocks(architecture)
    inside = gpu.link if degrees.ulysses <= gpus_per_node else gpu.network
    along = gpu.link if degrees.sequence <= gpus_per_node else gpu.network
    around = gpu.link if degrees.world_size <= gpus_per_node else gpu.network
    exchange = sent.exchange / inside + (2 * blocks * gpu.latency_s if degrees.ulysses > 1 else 0)
    ring = sent.ring / along + blocks * (degrees.ring - 1) * gpu.latency_s
    weights = sent.weights / around
    return (
        exchange
        + max(0.0, ring - _RING_HIDDEN * computing_s)
        + max(weights * (1 - _FSDP_HIDDEN), weights - computing_s)
        + sent.gather / along
    )


def pass_exchange_seconds(latent_bytes: float, *, degrees: Degrees, gpu: GPU, gpus_per_node: int) -> float:
    """Seconds per step in which the two halves of a gang with cfg 2 give each other their velocity."""
    if degrees.cfg == 1:
        return 0.0
    return latent_bytes / (gpu.link if degrees.world_size <= gpus_per_node else gpu.network) + 2 * gpu.latency_s
