"""Layouts: how one clip is spread over GPUs, what each costs, and which of them to take."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from wan_ray.config import GangSection, HardwareSection, ModelSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.hardware import GPUS
from wan_ray.costs.memory import denoise_memory
from wan_ray.costs.seconds import denoise_seconds
from wan_ray.degrees import Degrees
from wan_ray.variants import DiTArchitecture, get_variant

MAX_RANKS = 64
_NODE_GPUS = 8
_ROOMIER = 0.8  # of the memory


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees, whether the ranks divide the weights, and whether the blocks stay in host memory."""

    degrees: Degrees = Degrees()
    fsdp: bool = False
    offload_blocks: bool = False

    @property
    def num_gpus(self) -> int:
        """One per rank."""
        return self.degrees.world_size

    def __str__(self) -> str:
        """As the config says it."""
        settings = {
            "cfg_degree": self.degrees.cfg,
            "ulysses_degree": self.degrees.ulysses,
            "ring_degree": self.degrees.ring,
        }
        parts = [f"{name}: {value}" for name, value in settings.items() if value > 1]
        parts += ["fsdp: true"] if self.fsdp else []
        gang = f"gang: {{{', '.join(parts)}}}" if parts else "one GPU a clip"
        return gang + (" with offload: blocks" if self.offload_blocks else "")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a layout costs for one clip. memory: bytes of the busiest GPU; fits: whether it has them."""

    layout: Layout
    seconds: float
    memory: float
    fits: bool

    @property
    def gpu_seconds(self) -> float:
        """Of all its GPUs together."""
        return self.seconds * self.layout.num_gpus


def dtype_bytes(section: ModelSection) -> int:
    """Bytes of a number on a GPU."""
    return 4 if section.dtype == "float32" else 2


def layout_of(section: ModelSection) -> Layout:
    """The one that a config names; without a gang, or with one to be chosen, one GPU."""
    gang = section.gang if isinstance(section.gang, GangSection) else GangSection()
    # With sharded weights there is one way of offloading: block by block.
    offload_blocks = section.offload == "blocks" or (gang.fsdp and section.offload == "model")
    return Layout(degrees=gang.degrees, fsdp=gang.fsdp, offload_blocks=offload_blocks)


def estimate(section: ModelSection, bucket: Bucket, layout: Layout, hardware: HardwareSection) -> Estimate:
    """Of one clip of a model whose sizes are known."""
    architecture = known_architecture(section.variant)
    gpu, sizes, memory = GPUS[hardware.gpu], dtype_bytes(section), _memory(section, bucket, layout)
    seconds = denoise_seconds(
        architecture,
        bucket,
        degrees=layout.degrees,
        gpu=gpu,
        gpus_per_node=hardware.gpus_per_node,
        fsdp=layout.fsdp,
        offload_blocks=layout.offload_blocks,
        dtype_bytes=sizes,
    )
    return Estimate(layout=layout, seconds=seconds, memory=memory, fits=memory <= gpu.memory)


def known_architecture(variant: str) -> DiTArchitecture:
    """Of a released model; ask has_costs first."""
    architecture = get_variant(variant).architecture
    assert architecture is not None
    return architecture


def has_costs(section: ModelSection) -> bool:
    """Whether the model's sizes are known before its weights are seen: a debug model may have any."""
    return get_variant(section.variant).architecture is not None


def layouts(section: ModelSection, *, num_gpus: int, gpus_per_node: int) -> list[Layout]:
    """All that are worth asking for on so many GPUs, the fewest first: whole heads, Ulysses inside a node.

    Each with whole weights; where these do not fit, see sharded.
    """
    heads = known_architecture(section.variant).num_heads
    most = min(num_gpus, MAX_RANKS)
    ulysses = [n for n in range(1, min(gpus_per_node, most) + 1) if heads % n == 0]
    every = (Degrees(cfg=cfg, ulysses=n, ring=ring) for cfg, n, ring in product((1, 2), ulysses, (1, 2, 4, 8)))
    found = [
        Layout(degrees=degrees, offload_blocks=section.offload == "blocks")
        for degrees in every
        if degrees.world_size <= most and not misfit(degrees, gpus_per_node)
    ]
    return sorted(found, key=lambda layout: layout.num_gpus)


def sharded(layout: Layout) -> Layout | None:
    """The same with the weights divided, where there is more than one rank and nothing is offloaded."""
    return replace(layout, fsdp=True) if layout.num_gpus > 1 and not layout.offload_blocks else None


def estimates(
    section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection, *, num_gpus: int
) -> Iterator[list[Estimate]]:
    """One list per layout on so many GPUs: of every bucket, with weights divided where some bucket wants that.

    Layouts in which some do not fit are left out.
    """
    for layout in layouts(section, num_gpus=num_gpus, gpus_per_node=hardware.gpus_per_node):
        for tried in (layout, None if section.quantization != "none" else sharded(layout)):
            if tried is not None and (each := _all_fitting(section, buckets, tried, hardware)):
                yield each
                break


def _all_fitting(
    section: ModelSection, buckets: Sequence[Bucket], layout: Layout, hardware: HardwareSection
) -> list[Estimate]:
    """Empty when one does not fit."""
    found = []
    for bucket in buckets:
        found.append(estimate(section, bucket, layout, hardware))
        if not found[-1].fits:
            return []
    return found


def misfit(degrees: Degrees, gpus_per_node: int) -> str | None:
    """Why a gang's ranks do not come to lie well on nodes; None when they do."""
    if degrees.ulysses > gpus_per_node:
        return f"ulysses_degree={degrees.ulysses} is more than hardware.gpus_per_node={gpus_per_node}"
    if degrees.world_size > gpus_per_node and gpus_per_node % degrees.ulysses:
        return (
            f"ulysses_degree={degrees.ulysses} does not divide hardware.gpus_per_node={gpus_per_node}, "
            "so some of its groups would span nodes"
        )
    return None


def most_gangs(num_ranks: int, *, num_gpus: int, gpus_per_node: int) -> int:
    """Gangs of so many ranks that find room at a time; those that fit a node are not split."""
    if num_ranks > gpus_per_node:
        return num_gpus // num_ranks
    nodes, rest = divmod(num_gpus, gpus_per_node)
    return nodes * (gpus_per_node // num_ranks) + rest // num_ranks


def cheapest(found: Iterable[Estimate]) -> Estimate | None:
    """The throughput-best of those that fit: fewest GPU-seconds a clip."""
    return min((e for e in found if e.fits), key=lambda e: (e.gpu_seconds, e.layout.num_gpus), default=None)


def fastest(found: Iterable[Estimate]) -> Estimate | None:
    """The latency-best of those that fit: fewest seconds a clip."""
    return min((e for e in found if e.fits), key=lambda e: (e.seconds, e.layout.num_gpus), default=None)


def working_layout(
    section: ModelSection,
    buckets: Sequence[Bucket],
    hardware: HardwareSection,
    *,
    num_gpus: int,
    soonest: bool = False,
) -> Layout | None:
    """The cheapest layout in which every bucket fits, or the soonest; with offloaded blocks where nothing else does."""
    for tried in filter(None, (section, section.leaner)):
        sums = [
            (
                sum(e.seconds if soonest else e.gpu_seconds for e in each),
                each[0].layout.num_gpus,
                str(each[0].layout),
                each,
            )
            for each in estimates(tried, buckets, hardware, num_gpus=num_gpus)
        ]
        if sums:
            return min(sums, key=lambda found: found[:3])[-1][0].layout
    return None


def roomier_layout(section: ModelSection, bucket: Bucket) -> Layout | None:
    """The one on the fewest GPUs that needs clearly less of each than the section's does at its leanest.

    None where the model's sizes are not known, or more ranks do not need less.
    """
    if not has_costs(section):
        return None
    leanest = section.leaner or section
    others = layouts(leanest, num_gpus=MAX_RANKS, gpus_per_node=_NODE_GPUS)
    most = _ROOMIER * _memory(leanest, bucket, layout_of(leanest))
    roomier = (layout for layout in others if _memory(leanest, bucket, layout) < most)
    return min(roomier, key=lambda layout: (layout.num_gpus, layout.degrees.ring), default=None)


def _memory(section: ModelSection, bucket: Bucket, layout: Layout) -> float:
    """Bytes that each rank needs to denoise a clip."""
    return denoise_memory(
        known_architecture(section.variant),
        bucket,
        degrees=layout.degrees,
        fsdp=layout.fsdp,
        offload_blocks=layout.offload_blocks,
        dtype_bytes=dtype_bytes(section),
        quantization=section.quantization,
    ).total
