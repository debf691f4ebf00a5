"""Every config under configs/ is what its name says, and fits the GPUs that its name says."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from wan_ray.config import RenderConfig, load_config
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.hardware import GPUS
from wan_ray.costs.memory import decode_memory, denoise_memory, encode_memory
from wan_ray.degrees import Degrees
from wan_ray.stages.planning import plan_manifest
from wan_ray.variants import VARIANTS

FILES = sorted(file for file in (Path(__file__).parents[1] / "configs").glob("*.yaml") if file.stem != "debug")
NAME = re.compile(
    r"(?P<variant>[^_]+)(_(?P<lines>\d+)p)?_(?P<num_gpus>\d+)x(?P<memory>\d+)gb(?P<gang>_gang)?(?P<extend>_extend)?"
)
HEIGHTS = {"i2v-14B-480P": 480, "i2v-14B-720P": 720}  # where the variant's name has it
# What a run may plan with: the rest is the driver's, and of what the allocator loses beyond the model's estimate.
USABLE = 0.95

every_config = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def said(file: Path) -> dict[str, str]:
    match = NAME.fullmatch(file.stem)
    assert match, f"{file.name}: not <variant>_<lines>p_<count>x<memory>gb"
    return match.groupdict()


def lines_of(file: Path) -> int:
    name = said(file)
    return int(name["lines"] or HEIGHTS[name["variant"]])


def degrees_of(config: RenderConfig) -> Degrees:
    gang = config.all_models[0].gang
    return Degrees() if gang is None or gang == "auto" else gang.degrees


def workers(config: RenderConfig, lines: int) -> list[tuple[float, float, int]]:
    """Of each kind of worker with a GPU: the share of a GPU it reserves, the bytes it takes there, and how many."""
    (model,) = config.all_models
    architecture = VARIANTS[model.variant].architecture
    bucket = Bucket(model.variant, "", {480: 832, 720: 1280}[lines], lines, 81, 50)
    degrees = degrees_of(config)
    stages, blocks = config.stages, model.offload == "blocks"
    denoise = denoise_memory(architecture, bucket, degrees=degrees, offload_blocks=blocks).total
    found = [
        (stages.encode, encode_memory(architecture, bucket), 1),
        (stages.denoise, denoise, degrees.world_size),
        (stages.decode, decode_memory(bucket), 1),
    ]
    return [(stage.num_gpus, size, stage.replicas.max * n) for stage, size, n in found if stage.num_gpus]


def test_there_is_a_config_for_every_released_model() -> None:
    assert {said(file)["variant"] for file in FILES} == {name for name in VARIANTS if not name.startswith("debug")}


@every_config
def test_a_config_s_model_checkpoint_and_hardware_are_those_of_its_name(file: Path) -> None:
    config, name = load_config(file), said(file)
    (model,) = config.all_models
    assert model.variant == name["variant"]
    folder = model.checkpoint.rpartition("/")[2].lower()
    assert folder.removesuffix("-720p") == f"wan2.1-{model.variant}".lower().removesuffix("-720p")
    assert config.hardware is not None
    assert config.hardware.num_gpus == int(name["num_gpus"])
    assert GPUS[config.hardware.gpu].memory == int(name["memory"]) * 1e9
    assert (degrees_of(config).world_size > 1) == bool(name["gang"])
    assert (config.extend is not None) == bool(name["extend"])


@every_config
def test_the_workers_fit_the_gpus_however_ray_places_them(file: Path) -> None:
    kinds = workers(load_config(file), lines_of(file))
    assert sum(share * count for share, _, count in kinds) <= int(said(file)["num_gpus"]) + 1e-9
    fullest = max(
        sum(count * size for count, (_, size, _) in zip(counts, kinds, strict=True))
        for counts in itertools.product(*(range(min(count, int(1 / share)) + 1) for share, _, count in kinds))
        if sum(count * share for count, (share, _, _) in zip(counts, kinds, strict=True)) <= 1 + 1e-9
    )
    assert fullest <= USABLE * int(said(file)["memory"]) * 1e9


@every_config
def test_two_rows_are_planned_at_the_size_of_the_name(file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(picture)
    task = VARIANTS[said(file)["variant"]].tasks[0]
    images = {"i2v": ["image"], "flf2v": ["image", "last_image"]}.get(task, [])
    rows = {"prompt": ["A red car", "雨夜"], "task": [task] * 2, **{name: [str(picture)] * 2 for name in images}}
    pandas.DataFrame(rows).to_parquet(tmp_path / "manifest.parquet")
    plan = plan_manifest(load_config(file, [f"manifest={tmp_path / 'manifest.parquet'}"]), limit=None)
    assert [bool(plan.refused), list(plan.buckets.values())] == [False, [2]]
    (bucket,) = plan.buckets
    assert bucket.sized().height == lines_of(file)
    assert (bucket.variant, bucket.task, bucket.num_frames) == (said(file)["variant"], task, 81)
