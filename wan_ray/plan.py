"""What `wan-ray plan` says: rows by shape, and on given hardware how each is rendered, why, and what it costs."""

from collections.abc import Iterator

from wan_ray.config import HardwareSection, RenderConfig
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.layout import has_costs
from wan_ray.costs.memory import GB
from wan_ray.costs.run import ModelEstimate, RunEstimate, ShapeEstimate, estimate_run
from wan_ray.report.figures import duration, figure
from wan_ray.stages.planning import Plan

_HINT = "for time, GPU-hours and money add the GPUs to the config, e.g. hardware: {gpu: H100-80GB, num_gpus: 8}"
_WORTH_TELLING = 0.01  # of a run's time


def plan_lines(config: RenderConfig, plan: Plan) -> Iterator[str]:
    """Lines for people. ConfigError when the rows cannot be rendered on the config's hardware, naming what could."""
    run = estimate_run(config, plan.buckets)
    models = ", ".join(section.variant for section in config.all_models)
    yield f"{len(plan.names)} rows for {models}: {len(plan.refused)} invalid"
    shapes = {shape.bucket: shape for model in run.models for shape in model.shapes} if run else {}
    header = f"\n{'rows':>8}  {'model':<12}  task   size       frames  steps  passes"
    yield header + "  GPUs  GB each   a clip   clips/h  GPU-hours  cost    clips' MB" if shapes else header
    for bucket, count in sorted(plan.buckets.items()):
        shape = shapes.get(bucket)
        if shape is None or config.hardware is None:
            yield _row(bucket, count)
        else:
            yield f"{_row(bucket, count)}  {_figures(shape, config.hardware)}"
            yield from _explained(shape)
    if run is not None and config.hardware is not None:
        yield from _run_lines(run, config.hardware)
    elif plan.buckets and any(has_costs(section) for section in config.all_models):
        yield f"\n{_HINT}"
    for warning, count in plan.warnings.most_common():
        yield f"\nwarning, {count} rows: {warning}"


def _row(bucket: Bucket, count: int) -> str:
    size = f"{bucket.width}x{bucket.height}" if bucket.width else "by image"
    frames = f"{bucket.num_frames}+{bucket.num_references}" if bucket.num_references else f"{bucket.num_frames}"
    return (
        f"{count:>8}  {bucket.variant:<12}  {bucket.task:<5}  {size:<9}  {frames:>6}  "
        f"{bucket.num_inference_steps:>5}  {bucket.num_passes:>6}"
    )


def _figures(shape: ShapeEstimate, hardware: HardwareSection) -> str:
    price = hardware.price_per_gpu_hour
    return (
        f"{shape.chosen.layout.num_gpus:>4}  {shape.chosen.memory / GB:>7.0f}  {_time(shape.chosen.seconds):>7}  "
        f"{figure(shape.clips_per_hour):>8}  {figure(shape.gpu_hours):>9}  "
        f"{figure(None if price is None else price * shape.gpu_hours):<6}  "
        f"{figure(shape.num_clips * shape.size_bytes / 1e6):>9}"
    )


def _explained(shape: ShapeEstimate) -> Iterator[str]:
    indent = " " * 10
    yield f"{indent}{shape.chosen.layout}: {shape.why}"
    if shape.fastest.seconds < 0.95 * shape.chosen.seconds:
        fastest = shape.fastest.layout
        yield f"{indent}one clip is ready soonest with {fastest}: {_time(shape.fastest.seconds)}"
    if not shape.bucket.width:
        bucket = shape.bucket.sized()
        yield f"{indent}reckoned at the model's own {bucket.width}x{bucket.height}, whose area the images' sizes have"


def _run_lines(run: RunEstimate, hardware: HardwareSection) -> Iterator[str]:
    price = "" if run.price is None else f", {figure(run.price)} at {hardware.price_per_gpu_hour:g} each"
    yield (
        f"\nestimated for all rows: {duration(run.wall_s)} on {hardware.num_gpus} {hardware.gpu}, "
        f"{figure(run.gpu_hours)} GPU-hours{price}; {figure(run.size_bytes / GB)} GB of clips, by their content "
        "half or twice that"
    )
    for model in run.models:
        yield from _model_lines(model)


def _model_lines(model: ModelEstimate) -> Iterator[str]:
    name, gangs = model.variant, model.shapes[0].gangs
    at_work = f"{gangs} gangs at work want" if gangs > 1 else "one gang at work wants"
    together = f"{', '.join(model.together)} fit one GPU together" if model.together else "no two stages fit one GPU"
    yield (
        f"{name}: {at_work} {_counted(model.encode_workers, 'encode')} and {_counted(model.decode_workers, 'decode')}; "
        f"{together}"
    )
    if model.slowest in ("encode", "decode"):
        yield f"{name}: takes as long as its {model.slowest} stage, which keeps the gangs waiting; give it replicas"
    if (tail := model.tail) is not None and tail.sooner_s > _WORTH_TELLING * model.wall_s:
        clips = f"last {tail.num_clips} clips" if tail.num_clips > 1 else "last clip"
        yield f"{name}: with {tail.layout} for its {clips} it would end {duration(tail.sooner_s)} sooner"


def _counted(number: int, stage: str) -> str:
    return f"{number} {stage} worker{'s' if number > 1 else ''}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{figure(seconds / 60)} min"
