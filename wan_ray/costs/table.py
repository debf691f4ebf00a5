"""The README's table of GPU memory: what each released model needs, and how it runs on GPUs of 24 to 141 GB."""

from wan_ray.config import HardwareSection, ModelSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.check import stage_needs
from wan_ray.costs.layout import Layout, estimate, working_layout
from wan_ray.costs.memory import GB
from wan_ray.variants import VARIANTS, Variant

_GPUS = {"A10G-24GB": 24, "A100-40GB": 40, "L40S-48GB": 48, "A100-80GB": 80, "H200-141GB": 141}
_MAX_GPUS = 8


def memory_table() -> str:
    """Markdown: of 81 frames at each trained size, one way round, in bfloat16."""
    head = ["model", "size", "encode", "denoise", "with offload", "decode", *(f"{size} GB" for size in _GPUS.values())]
    rows = [_row(variant, size) for variant in VARIANTS.values() if variant.architecture for size in _sizes(variant)]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _sizes(variant: Variant) -> list[tuple[int, int]]:
    return [(width, height) for width, height in variant.sizes if width > height]


def _row(variant: Variant, size: tuple[int, int]) -> list[str]:
    section = ModelSection(variant=variant.name, checkpoint="")
    bucket = Bucket(variant.name, variant.tasks[0], *size, 81, 50)
    hardware = HardwareSection()
    needs = stage_needs(section, [bucket], hardware)
    offloaded = estimate(section, bucket, Layout(offload_blocks=True), hardware)
    figures = [needs["encode"], needs["denoise"], offloaded.memory, needs["decode"]]
    return [
        variant.name,
        f"{size[0]}x{size[1]}",
        *(f"{figure / GB:.0f}" for figure in figures),
        *(_way(section, bucket, gpu) for gpu in _GPUS),
    ]


def _way(section: ModelSection, bucket: Bucket, gpu: str) -> str:
    """How one clip runs on GPUs of a type: alone, else offloaded or on the fewest GPUs that divide the weights."""
    hardware = HardwareSection.model_validate({"gpu": gpu, "num_gpus": _MAX_GPUS})
    if estimate(section, bucket, Layout(), hardware).fits:
        return "1 GPU"
    ways = []
    if estimate(section, bucket, Layout(offload_blocks=True), hardware).fits:
        ways.append("offload")
    for num_gpus in range(2, _MAX_GPUS + 1):
        found = working_layout(section, [bucket], hardware, num_gpus=num_gpus)
        if found is not None and not found.offload_blocks:
            ways.append(f"{found.num_gpus} GPUs")
            break
    return " or ".join(ways) or "no"
