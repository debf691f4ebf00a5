"""A layout that cannot work is refused with one that would: the one it names is taken at its word."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from wan_ray.config import GangSection, RenderConfig, load_config
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.check import check_layout
from wan_ray.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
LARGE = Bucket("t2v-14B", "t2v", 1280, 720, 81, 50)


def run_of(**changes: Any) -> dict[str, Any]:
    """A sound run on eight H100s, changed: model=, denoise=, encode=, decode=, hardware=."""
    stages = {
        "encode": {"num_gpus": 0.4},
        "denoise": {"num_gpus": 1, "replicas": {"min": 1, "max": 8}},
        "decode": {"num_gpus": 0.3},
    }
    return {
        "model": {"variant": "t2v-14B", "checkpoint": "none", **changes.get("model", {})},
        "stages": {name: {**stages[name], **changes.get(name, {})} for name in stages},
        "hardware": {"gpu": "H100-80GB", "num_gpus": 8, **changes.get("hardware", {})},
    }


def refusal(run: Mapping[str, Any], bucket: Bucket = LARGE) -> str:
    with pytest.raises(ConfigError) as error:
        check_layout(RenderConfig.model_validate(run), {bucket: 10})
    return str(error.value)


def followed(run: Mapping[str, Any], advice: str) -> dict[str, Any]:
    """The run with what the end of a refusal says put into it."""
    changed = yaml.safe_load(yaml.safe_dump(dict(run)))
    model, stages = changed["model"], changed["stages"]
    if "one GPU a clip" in advice:
        model.pop("gang", None)
    if found := re.search(r"gang: (\{.*?\})", advice):
        model["gang"] = yaml.safe_load(found[1])
    if found := re.search(r"offload[:=] ?(\w+)", advice):
        model["offload"] = found[1]
    if found := re.search(r"vae_tile=(\d+)", advice):
        model["vae_tile"] = int(found[1])
    if found := re.search(r"strategy: (\w+)", advice):
        model["gang"]["strategy"] = found[1]
    if found := re.search(r"use hardware.gpu=(\S+)", advice):
        changed["hardware"]["gpu"] = found[1]
    for stage, name, value in re.findall(r"stages\.(\w+)\.(\w+)=([\d.]+)", advice):
        stages[stage][name] = yaml.safe_load(value)
    assert changed != run
    return changed


GANG_OF_8 = {"gang": {"cfg_degree": 2, "ulysses_degree": 4}}
BROKEN = {
    "more ranks than GPUs": (
        run_of(model=GANG_OF_8, hardware={"num_gpus": 4}),
        r"gang cfg2 x ulysses4 x ring1 wants 1 x 8 GPUs.*num_gpus=4.* leave 3 to denoise; use gang: \{cfg_degree: 2\}",
    ),
    "more gangs than find room": (
        run_of(model=GANG_OF_8, denoise={"replicas": 2}, hardware={"num_gpus": 16}),
        r"wants 2 x 8 GPUs, and hardware.num_gpus=16, gpus_per_node=8 leave 15 to denoise",
    ),
    "Ulysses across nodes": (
        run_of(model={"gang": {"ulysses_degree": 20}}, hardware={"num_gpus": 24}),
        r"ulysses_degree=20 is more than hardware.gpus_per_node=8; use gang: \{cfg_degree: 2, ulysses_degree: 4\}",
    ),
    "Ulysses groups cut by nodes": (
        run_of(model={"gang": {"ulysses_degree": 5, "ring_degree": 2}}, hardware={"num_gpus": 24}),
        r"ulysses_degree=5 does not divide hardware.gpus_per_node=8",
    ),
    "weights that want dividing": (
        run_of(model={"gang": {"cfg_degree": 2}}, hardware={"gpu": "A10G-24GB"}, encode={"num_gpus": 0}),
        r"t2v-14B at 1280x720x81 needs 41 GB on each GPU, and A10G-24GB has 24; use gang: \{.*fsdp: true\}",
    ),
    "weights that want offloading": (
        run_of(hardware={"gpu": "A10G-24GB", "num_gpus": 2}, encode={"num_gpus": 0}),
        r"needs 41 GB .*; use one GPU a clip with offload: blocks",
    ),
    "stages too many for one GPU": (
        run_of(
            hardware={"gpu": "L40S-48GB", "num_gpus": 1},
            encode={"num_gpus": 0.2},
            denoise={"num_gpus": 0.6},
            decode={"num_gpus": 0.2},
        ),
        r"1 encode worker \(12 GB\) and 1 denoise worker \(41 GB\) and 1 decode worker \(20 GB\).*offload=blocks",
    ),
    "ranks without a GPU": (run_of(denoise={"num_gpus": 0}), r"set stages.denoise.num_gpus=1"),
    "a ring of float32 by xfuser": (
        run_of(model={"dtype": "float32", "gang": {"ring_degree": 2, "strategy": "xfuser"}}),
        r"dtype='float32' has no attention of xfuser's.*use strategy: torch",
    ),
    "heads that xfuser cannot divide": (
        run_of(model={"gang": {"ulysses_degree": 3, "strategy": "xfuser"}}),
        r"does not divide the 40 heads.*use strategy: torch",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_work_is_refused_and_what_is_named_instead_works(name: str) -> None:
    run, said = BROKEN[name]
    message = refusal(run)
    assert re.search(said, message)
    check_layout(RenderConfig.model_validate(followed(run, message)), {LARGE: 10})


def test_a_clip_too_large_for_a_gpu_names_a_gpu_that_has_the_memory() -> None:
    run = run_of(hardware={"gpu": "A10G-24GB", "num_gpus": 2}, encode={"num_gpus": 0}, decode={"num_gpus": 0})
    long = LARGE._replace(num_frames=401)
    message = refusal(run, long)
    assert "use hardware.gpu=" in message
    check_layout(RenderConfig.model_validate(followed(run, message)), {long: 10})


def test_a_decoder_too_large_for_a_gpu_works_in_tiles() -> None:
    run = run_of(hardware={"gpu": "A10G-24GB", "num_gpus": 8}, encode={"num_gpus": 0}, model={"offload": "blocks"})
    huge = LARGE._replace(width=1920, height=1088, num_frames=33)
    message = refusal(run, huge)
    assert message.endswith("set model.vae_tile=256")
    check_layout(RenderConfig.model_validate(followed(run, message)), {huge: 10})


def test_a_stage_too_large_for_a_gpu_goes_to_the_cpus() -> None:
    model = {"variant": "i2v-14B-720P", "offload": "blocks"}
    run = run_of(hardware={"gpu": "A10G-24GB", "num_gpus": 8}, decode={"num_gpus": 0}, model=model)
    large = LARGE._replace(variant="i2v-14B-720P", task="i2v")
    message = refusal(run, large)
    assert message.endswith("set stages.encode.num_gpus=0 to do that on CPUs, or take a GPU with more memory")
    check_layout(RenderConfig.model_validate(followed(run, message)), {large: 10})


def test_the_other_stages_must_leave_a_rank_room() -> None:
    run = run_of(hardware={"num_gpus": 1})
    assert refusal(run).endswith("lower stages.encode.num_gpus and stages.decode.num_gpus")


def test_auto_becomes_a_gang_and_what_is_sound_is_left_as_it_is() -> None:
    auto = RenderConfig.model_validate(run_of(model={"gang": "auto"}))
    decided = check_layout(auto, {LARGE: 1}).model
    assert decided is not None
    assert isinstance(decided.gang, GangSection)
    assert decided.gang.degrees.world_size == 5  # of the seven GPUs that are left: 40 heads by five
    named = RenderConfig.model_validate(run_of(model=GANG_OF_8, encode={"num_gpus": 0}, decode={"num_gpus": 0}))
    assert check_layout(named, {LARGE: 1}) == named


def test_without_hardware_or_on_cpus_nothing_is_refused() -> None:
    run = run_of(model={**GANG_OF_8, "device": "cpu"}, hardware={"num_gpus": 1})
    check_layout(RenderConfig.model_validate(run), {LARGE: 1})
    run = {**run_of(model=GANG_OF_8), "hardware": None}
    check_layout(RenderConfig.model_validate(run), {LARGE: 1})


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_config_can_render_what_it_is_named_for(file: Path) -> None:
    config = load_config(file)
    width, height = (config.defaults.get(name, 0) for name in ("width", "height"))
    assert isinstance(width, int)
    assert isinstance(height, int)
    variant = config.all_models[0].variant
    assert (config.hardware is None) == (variant == "debug")
    check_layout(config, {Bucket(variant, "", width, height, 81, 50): 10})
