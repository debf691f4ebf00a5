"""A whole run, estimated: per shape what a clip takes and how, and for all rows time, GPU-hours, money and storage."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wan_ray.config import HardwareSection, ModelSection, RenderConfig, StageSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.check import decided, stage_needs
from wan_ray.costs.choice import denoise_gpus, finish_seconds, num_gangs, own_buckets
from wan_ray.costs.hardware import GPUS
from wan_ray.costs.layout import Estimate, cheapest, estimate, estimates, fastest, has_costs, layout_of
from wan_ray.costs.seconds import decode_seconds, encode_seconds
from wan_ray.costs.tail import Tail, tail_layout

# Assumed: bits per pixel of H.264 at crf 18, preset medium, twice as many for every 6 of crf less; of PNG.
_H264_BITS, _H264_CRF, _PNG_BITS = 0.2, 18, 12.0


@dataclass(frozen=True, kw_only=True)
class ShapeEstimate:
    """The rows of one shape in the run's layout. gpu_seconds: of all stages that are on GPUs, for one clip.

    cheapest and fastest: the throughput-best and the latency-best layout on the GPUs there are.
    """

    bucket: Bucket
    num_clips: int
    chosen: Estimate
    gangs: int
    why: str
    cheapest: Estimate
    fastest: Estimate
    gpu_seconds: float
    size_bytes: float

    @property
    def clips_per_hour(self) -> float:
        """While all gangs render this shape."""
        return 3600 * self.gangs / self.chosen.seconds

    @property
    def gpu_hours(self) -> float:
        """At work on these rows."""
        return self.num_clips * self.gpu_seconds / 3600


@dataclass(frozen=True, kw_only=True)
class ModelEstimate:
    """All rows of one model. slowest: the stage that decides wall_s.

    encode_workers, decode_workers: as many as keep the gangs busy. together: stages whose workers fit one GPU.
    """

    variant: str
    shapes: tuple[ShapeEstimate, ...]
    wall_s: float
    slowest: str
    encode_workers: int
    decode_workers: int
    together: tuple[str, ...]
    tail: Tail | None


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """All rows. GPU-hours are those of all GPUs from the first row to the last; price is None where none is given."""

    models: tuple[ModelEstimate, ...]
    wall_s: float
    gpu_hours: float
    price: float | None
    size_bytes: float


def clip_bytes(bucket: Bucket, *, crf: int) -> float:
    """Of the file, to within a factor of two or three: what is in the picture decides."""
    bits = _PNG_BITS if bucket.num_frames == 1 else _H264_BITS * 2 ** ((_H264_CRF - crf) / 6)
    return bits * bucket.num_pixels * bucket.num_frames / 8


def estimate_run(config: RenderConfig, buckets: Mapping[Bucket, int]) -> RunEstimate | None:
    """For rows of models on GPUs whose sizes are known; None without those or without a hardware section.

    ConfigError as from check_layout.
    """
    config, reasons = decided(config, buckets)
    hardware = config.hardware
    if hardware is None:
        return None
    models = tuple(
        _estimate_model(config, section, hardware, own_buckets(section, buckets), reasons.get(section.variant))
        for section in config.all_models
        if has_costs(section)
        and section.device != "cpu"
        and any(bucket.variant == section.variant for bucket in buckets)
    )
    if not models:
        return None
    wall_s = sum(model.wall_s for model in models)
    gpu_hours = wall_s * hardware.num_gpus / 3600
    return RunEstimate(
        models=models,
        wall_s=wall_s,
        gpu_hours=gpu_hours,
        price=None if hardware.price_per_gpu_hour is None else gpu_hours * hardware.price_per_gpu_hour,
        size_bytes=sum(shape.num_clips * shape.size_bytes for model in models for shape in model.shapes),
    )


def _estimate_model(
    config: RenderConfig,
    section: ModelSection,
    hardware: HardwareSection,
    buckets: Mapping[Bucket, int],
    reason: str | None,
) -> ModelEstimate:
    stages, gpu = config.stages, GPUS[hardware.gpu]
    layout, room = layout_of(section), denoise_gpus(stages, hardware)
    gangs = num_gangs(layout, stages, hardware)
    shapes, totals, tail = [], {"encode": 0.0, "denoise": 0.0, "decode": 0.0}, None
    for bucket, count in buckets.items():
        chosen = estimate(section, bucket, layout, hardware)
        others = [found for (found,) in estimates(section, [bucket], hardware, num_gpus=room)]
        seconds = {
            "encode": encode_seconds(bucket, gpu),
            "denoise": chosen.seconds,
            "decode": decode_seconds(bucket, gpu, threads=config.video.threads),
        }
        for stage in totals:
            totals[stage] += count * seconds[stage]
        best = cheapest(others) or chosen
        shapes.append(
            ShapeEstimate(
                bucket=bucket,
                num_clips=count,
                chosen=chosen,
                gangs=gangs,
                why=reason or _as_configured(chosen, best),
                cheapest=best,
                fastest=fastest(others) or chosen,
                gpu_seconds=chosen.gpu_seconds
                + sum(seconds[stage] for stage in ("encode", "decode") if getattr(stages, stage).num_gpus),
                size_bytes=clip_bytes(bucket, crf=config.video.crf),
            )
        )
        tail = tail_layout(count, chosen, others, num_gpus=room, gpus_per_node=hardware.gpus_per_node)
    denoised_s = finish_seconds([(shape.num_clips, shape.chosen.seconds) for shape in shapes], gangs)
    waits = {
        "denoise": denoised_s,
        "encode": totals["encode"] / _gpu_workers(stages.encode),
        "decode": totals["decode"] / _gpu_workers(stages.decode),
        "all stages on the GPUs they share": sum(s.num_clips * s.gpu_seconds for s in shapes) / hardware.num_gpus,
    }
    slowest = max(waits, key=lambda stage: waits[stage])
    return ModelEstimate(
        variant=section.variant,
        shapes=tuple(shapes),
        wall_s=waits[slowest],
        slowest=slowest,
        encode_workers=math.ceil(gangs * totals["encode"] / totals["denoise"]),
        decode_workers=math.ceil(gangs * totals["decode"] / totals["denoise"]),
        together=_together(stage_needs(section, list(buckets), hardware), gpu.memory),
        tail=tail,
    )


def _gpu_workers(stage: StageSection) -> float:
    """Of a stage on CPUs nothing is known, so it is taken to keep up."""
    return stage.replicas.max if stage.num_gpus else math.inf


def _as_configured(chosen: Estimate, best: Estimate) -> str:
    less = 1 - best.gpu_seconds / chosen.gpu_seconds
    if less < 0.05:
        return "as configured, and no layout takes clearly fewer GPU-seconds"
    return f"as configured, though {best.layout} takes {less:.0%} fewer GPU-seconds"


def _together(needs: Mapping[str, float], memory: float) -> tuple[str, ...]:
    """The most stages of which one worker each fits a GPU beside the others."""
    for stages in (("encode", "denoise", "decode"), ("denoise", "decode"), ("encode", "decode")):
        if sum(needs[stage] for stage in stages) <= memory:
            return stages
    return ()
