"""Layouts that cannot work, refused before anything starts, each with one that would."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from wan_ray.config import GangSection, HardwareSection, ModelSection, RenderConfig, StagesSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.choice import denoise_gpus, no_layout, num_gangs, own_buckets, resolve_gang
from wan_ray.costs.hardware import GPUS
from wan_ray.costs.layout import (
    Layout,
    dtype_bytes,
    estimate,
    has_costs,
    known_architecture,
    layout_of,
    misfit,
    working_layout,
)
from wan_ray.costs.memory import GB, decode_memory, encode_memory
from wan_ray.errors import ConfigError

_VAE_TILE = 256  # pixels; costs a fifth more FLOPs than whole frames


def check_layout(config: RenderConfig, buckets: Mapping[Bucket, int]) -> RenderConfig:
    """The config with every `gang: auto` decided for these rows.

    ConfigError when a gang cannot lie on the config's hardware or a GPU lacks the memory. Without a hardware section
    only a cluster can tell; what runs on CPUs is not looked at.
    """
    return decided(config, buckets)[0]


def decided(config: RenderConfig, buckets: Mapping[Bucket, int]) -> tuple[RenderConfig, dict[str, str]]:
    """As check_layout, and the reason of each decision by variant."""
    models, reasons = [], {}
    for named in config.all_models:
        _check_attention(named)
        on_gpus = config.hardware if named.device != "cpu" else None
        if on_gpus is not None:
            _check_reserved(on_gpus, config.stages)
        section = named
        if named.gang == "auto":
            gang, reasons[named.variant] = resolve_gang(named, config.hardware, buckets, stages=config.stages)
            section = named.model_copy(update={"gang": gang})
        models.append(section)
        if on_gpus is not None:
            _check_ranks(section, buckets, on_gpus, config.stages)
            if has_costs(section) and any(bucket.variant == section.variant for bucket in buckets):
                _check_memory(section, list(own_buckets(section, buckets)), on_gpus, config.stages)
    changed = {"models": tuple(models)} if config.models else {"model": models[0]}
    return config.model_copy(update=changed), reasons


def _check_reserved(hardware: HardwareSection, stages: StagesSection) -> None:
    if not stages.denoise.num_gpus:
        raise ConfigError(
            f"stages.denoise.num_gpus=0 would leave the {hardware.gpu}s of hardware idle; set stages.denoise.num_gpus=1"
        )
    if denoise_gpus(stages, hardware) < 1:
        raise ConfigError(
            f"the other stages leave less than the {stages.denoise.num_gpus:g} GPU of one rank of hardware.num_gpus="
            f"{hardware.num_gpus}; lower stages.encode.num_gpus and stages.decode.num_gpus"
        )


def _check_attention(section: ModelSection) -> None:
    """xfuser's attention is 16 bits, on GPUs, by whole heads; the portable one is everything."""
    gang = section.gang if isinstance(section.gang, GangSection) else GangSection()
    degrees, problem = gang.degrees, None
    if gang.strategy != "xfuser" or degrees.sequence == 1:
        return
    if section.device == "cpu":
        problem = "model.device='cpu' has no attention of xfuser's, which needs GPUs"
    elif section.dtype == "float32":
        problem = "model.dtype='float32' has no attention of xfuser's, neither across a ring nor for Ulysses"
    elif has_costs(section) and (heads := known_architecture(section.variant).num_heads) % degrees.ulysses:
        problem = f"ulysses_degree={degrees.ulysses} does not divide the {heads} heads, which xfuser needs"
    if problem:
        raise ConfigError(f"{section.variant}: gang.strategy='xfuser', and {problem}; use strategy: torch")


def _check_ranks(
    section: ModelSection, buckets: Mapping[Bucket, int], hardware: HardwareSection, stages: StagesSection
) -> None:
    layout, most, gangs = layout_of(section), denoise_gpus(stages, hardware), stages.denoise.replicas.min
    problem = misfit(layout.degrees, hardware.gpus_per_node)
    if problem is None and num_gangs(layout, stages, hardware) < gangs:
        each = f"{gangs} x {layout.num_gpus}" if layout.num_gpus > 1 else f"{gangs}"
        problem = (
            f"{section.variant}: gang {layout.degrees} wants {each} GPUs, and hardware.num_gpus={hardware.num_gpus}, "
            f"gpus_per_node={hardware.gpus_per_node} leave {most} to denoise"
        )
    if problem is None:
        return
    if most < gangs:
        raise ConfigError(f"{problem}; set stages.denoise.replicas={most} or add GPUs")
    fitting = Layout()
    if has_costs(section):
        room, mine = min(most // gangs, hardware.gpus_per_node), list(own_buckets(section, buckets))
        fitting = working_layout(section, mine, hardware, num_gpus=room, soonest=True) or fitting
    raise ConfigError(f"{problem}; use {fitting}")


def _check_memory(
    section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection, stages: StagesSection
) -> None:
    layout, memory = layout_of(section), GPUS[hardware.gpu].memory
    for bucket in buckets:
        found = estimate(section, bucket, layout, hardware)
        if not found.fits:
            room = min(denoise_gpus(stages, hardware) // stages.denoise.replicas.min, hardware.gpus_per_node)
            raise ConfigError(no_layout(section, buckets, hardware, num_gpus=room))
    shared = fullest_gpu(section, buckets, hardware, stages)
    if shared.total <= memory:
        return
    fix = _fix_sharing(section, buckets, hardware, stages)
    raise ConfigError(f"{shared} may share one {hardware.gpu}, which has not {shared.total / GB:.0f} GB; {fix}")


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Workers on one GPU, by stage, and what one of each needs, in bytes."""

    counts: Mapping[str, int]
    needs: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes of them all."""
        return sum(count * self.needs[stage] for stage, count in self.counts.items())

    def __str__(self) -> str:
        return " and ".join(
            f"{count} {stage} worker{'s' if count > 1 else ''} ({self.needs[stage] / GB:.0f} GB)"
            for stage, count in self.counts.items()
            if count
        )


def stage_needs(section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection) -> dict[str, float]:
    """Bytes that one worker of each stage needs on a GPU, for the largest of the shapes."""
    architecture = known_architecture(section.variant)
    return {
        "encode": max(encode_memory(architecture, bucket, dtype_bytes=dtype_bytes(section)) for bucket in buckets),
        "denoise": max(estimate(section, bucket, layout_of(section), hardware).memory for bucket in buckets),
        "decode": max(decode_memory(bucket, tile=section.vae_tile) for bucket in buckets),
    }


def fullest_gpu(
    section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection, stages: StagesSection
) -> Sharing:
    """The workers that need most of those whose num_gpus let them come together on one GPU; Ray may put them so."""
    needs = stage_needs(section, buckets, hardware)
    shares = {name: getattr(stages, name).num_gpus for name in needs}
    ranks = {"encode": 1, "decode": 1, "denoise": layout_of(section).num_gpus}
    ranges = [
        range(min(int(1 / share + 1e-6), getattr(stages, name).replicas.max * ranks[name]) + 1)
        if (share := shares[name])
        else range(1)
        for name in needs
    ]
    together = (dict(zip(needs, counts, strict=True)) for counts in product(*ranges))
    possible = [counts for counts in together if sum(shares[name] * n for name, n in counts.items()) <= 1 + 1e-6]
    return max((Sharing(counts=counts, needs=needs) for counts in possible), key=lambda sharing: sharing.total)


def _fix_sharing(
    section: ModelSection, buckets: Sequence[Bucket], hardware: HardwareSection, stages: StagesSection
) -> str:
    """What to set so that a GPU holds what shares it."""
    memory = GPUS[hardware.gpu].memory
    if section.vae_tile is None:
        tiled = section.model_copy(update={"vae_tile": _VAE_TILE})
        if fullest_gpu(tiled, buckets, hardware, stages).total <= memory:
            return f"set model.vae_tile={_VAE_TILE}"
    needs = stage_needs(section, buckets, hardware)
    if too_large := [stage for stage in ("encode", "decode") if needs[stage] > memory]:
        settings = " and ".join(f"stages.{stage}.num_gpus=0" for stage in too_large)
        return f"set {settings} to do that on CPUs, or take a GPU with more memory"
    whole = {name: getattr(stages, name) for name in needs if getattr(stages, name).num_gpus}
    if sum(stage.replicas.min for stage in whole.values()) <= hardware.num_gpus and layout_of(section).num_gpus == 1:
        return "set " + " and ".join(f"stages.{name}.num_gpus=1" for name in whole)
    leaner = section.leaner if layout_of(section).num_gpus == 1 else None
    if leaner is not None and fullest_gpu(leaner, buckets, hardware, stages).total <= memory:
        return "set model.offload=blocks"
    on_cpu = stages.model_copy(update={"encode": stages.encode.model_copy(update={"num_gpus": 0.0})})
    if stages.encode.num_gpus and fullest_gpu(section, buckets, hardware, on_cpu).total <= memory:
        return "set stages.encode.num_gpus=0 to encode on CPUs"
    return "raise the stages' num_gpus, so that fewer come together, or take a GPU with more memory"
