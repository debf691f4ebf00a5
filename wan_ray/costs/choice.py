"""Which layout a run takes: the one in which its rows end soonest on the GPUs there are."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wan_ray.config import GangSection, HardwareSection, ModelSection, StagesSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.hardware import GPUS
from wan_ray.costs.layout import (
    Estimate,
    Layout,
    estimate,
    estimates,
    has_costs,
    layout_of,
    most_gangs,
    working_layout,
)
from wan_ray.costs.memory import GB
from wan_ray.errors import ConfigError

# A larger gang must end the run by this much sooner, or the GPU-seconds it wastes are not worth it.
_WORTH = 0.95


def denoise_gpus(stages: StagesSection, hardware: HardwareSection) -> int:
    """GPUs that denoising ranks may take: what the other stages leave, one rank to a GPU."""
    sections = (stages.extend, stages.encode, stages.decode, stages.publish)
    others = sum(stage.replicas.min * stage.num_gpus for stage in sections)
    share = stages.denoise.num_gpus or 1.0
    return min(hardware.num_gpus, int((hardware.num_gpus - others) / share + 1e-6))


def num_gangs(layout: Layout, stages: StagesSection, hardware: HardwareSection) -> int:
    """Gangs at work at a time: as many as find room, at most as the config has replicas."""
    room = most_gangs(layout.num_gpus, num_gpus=denoise_gpus(stages, hardware), gpus_per_node=hardware.gpus_per_node)
    return min(room, stages.denoise.replicas.max)


def finish_seconds(clips: Iterable[tuple[int, float]], gangs: int) -> float:
    """When gangs that take clips in turn are done: (how many, seconds of each), shape after shape."""
    free_at = [0.0] * gangs
    for count, seconds in clips:
        rounds = max(0, count // gangs - 2)  # of all gangs; the last ones level off what earlier shapes left uneven
        free_at = [at + rounds * seconds for at in free_at]
        heapq.heapify(free_at)
        for _ in range(count - rounds * gangs):
            heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def resolve_gang(
    section: ModelSection,
    hardware: HardwareSection | None,
    buckets: Mapping[Bucket, int],
    *,
    stages: StagesSection | None = None,
) -> tuple[GangSection, str]:
    """The gang for `gang: auto`, and why; buckets count the rows of each shape, of this model or of others too.

    Without rows the model's own shape is taken. ConfigError when the GPUs are not known, or none of them has the
    memory.
    """
    if isinstance(section.gang, GangSection) or section.gang is None:
        return section.gang or GangSection(), "as configured"
    if not has_costs(section):
        return GangSection(), f"the sizes of {section.variant!r} are not known before it is loaded: one rank"
    if hardware is None:
        raise ConfigError(
            "model.gang='auto' needs to know the GPUs; add them to the config, e.g. "
            "hardware: {gpu: H100-80GB, num_gpus: 8}, or name the degrees"
        )
    stages = stages or StagesSection()
    mine = own_buckets(section, buckets)
    room = denoise_gpus(stages, hardware) // stages.denoise.replicas.min
    found = [
        candidate
        for each in estimates(section, list(mine), hardware, num_gpus=room)
        if (candidate := _Candidate.of(each, list(mine.values()), stages, hardware)) is not None
    ]
    if not found:
        raise ConfigError(no_layout(section, list(mine), hardware, num_gpus=room))
    soonest = min(candidate.wall_s for candidate in found)
    chosen = min(
        (candidate for candidate in found if candidate.wall_s * _WORTH <= soonest),
        key=lambda c: (c.layout.num_gpus, c.gpu_seconds),
    )
    degrees = chosen.layout.degrees
    gang = GangSection(
        cfg_degree=2 if degrees.cfg == 2 else 1,
        ulysses_degree=degrees.ulysses,
        ring_degree=degrees.ring,
        fsdp=chosen.layout.fsdp,
    )
    return gang, _reason(chosen, found, sum(mine.values()), hardware)


def own_buckets(section: ModelSection, buckets: Mapping[Bucket, int]) -> dict[Bucket, int]:
    """Those of the model; where it has no rows, one clip of its own shape."""
    mine = {bucket: count for bucket, count in buckets.items() if bucket.variant == section.variant}
    return mine or {Bucket(section.variant, "", 0, 0, 81, 50): 1}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    layout: Layout
    gangs: int
    wall_s: float
    gpu_seconds: float

    @classmethod
    def of(
        cls, each: Sequence[Estimate], counts: Sequence[int], stages: StagesSection, hardware: HardwareSection
    ) -> "_Candidate | None":
        """From the estimates of every shape in one layout; None when too few of its gangs find room."""
        layout = each[0].layout
        gangs = num_gangs(layout, stages, hardware)
        if gangs < stages.denoise.replicas.min:
            return None
        return cls(
            layout=layout,
            gangs=gangs,
            wall_s=finish_seconds(zip(counts, (e.seconds for e in each), strict=True), gangs),
            gpu_seconds=sum(count * e.gpu_seconds for count, e in zip(counts, each, strict=True)),
        )


def _reason(chosen: _Candidate, found: Sequence[_Candidate], num_clips: int, hardware: HardwareSection) -> str:
    smallest = min(found, key=lambda c: (c.layout.num_gpus, c.wall_s))
    if chosen.layout.num_gpus == 1:
        clips = f"{num_clips:,} clips" if num_clips > 1 else "one clip"
        return f"one GPU has the memory, and larger gangs would not end {clips} clearly sooner"
    clips = f"{num_clips:,} clips end" if num_clips > 1 else "one clip ends"
    lacking = f"no {hardware.gpu} alone has the memory" if smallest.layout.num_gpus > 1 else ""
    if chosen is smallest:
        return lacking
    compared = "one GPU each" if smallest.layout.num_gpus == 1 else f"gangs of {smallest.layout.num_gpus}"
    sooner = (
        f"{clips} after {_time(chosen.wall_s)} on {chosen.gangs} x {chosen.layout.num_gpus} GPUs, "
        f"after {_time(smallest.wall_s)} with {compared} on {smallest.gangs * smallest.layout.num_gpus}"
    )
    return f"{lacking}; {sooner}" if lacking else sooner


def no_layout(section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection, *, num_gpus: int) -> str:
    """That the layout does not fit, and what would: another, another on larger GPUs, or on more of them."""
    worst = max(buckets, key=lambda bucket: bucket.num_tokens)
    needed = estimate(section, worst, layout_of(section), hardware).memory / GB
    have = GPUS[hardware.gpu].memory / GB
    said = f"{worst} needs {needed:.0f} GB on each GPU, and {hardware.gpu} has {have:.0f}"
    if (found := working_layout(section, buckets, hardware, num_gpus=num_gpus)) is not None:
        return f"{said}; use {found}"
    for name in sorted(GPUS, key=lambda name: GPUS[name].memory):
        larger = hardware.model_copy(update={"gpu": name})
        if (found := working_layout(section, buckets, larger, num_gpus=num_gpus)) is not None:
            return f"{said}, in any layout of {num_gpus}; use hardware.gpu={name} and {found}"
    if (found := working_layout(section, buckets, hardware, num_gpus=hardware.gpus_per_node)) is not None:
        return f"{said}, in any layout of {num_gpus}; add GPUs for {found}"
    return f"{said}, and no GPU known here has enough in any layout; render fewer pixels or frames"


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
