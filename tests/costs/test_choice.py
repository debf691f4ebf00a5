"""Which layout is taken, and the widening of a run's tail, against the rules and tables of the performance map."""

import pytest

from wan_ray.config import GangSection, HardwareSection, ModelSection, StagesSection
from wan_ray.costs.bucket import Bucket
from wan_ray.costs.choice import finish_seconds, resolve_gang
from wan_ray.costs.layout import Estimate, Layout, cheapest, estimates, fastest, most_gangs, roomier_layout
from wan_ray.costs.tail import tail_layout
from wan_ray.degrees import Degrees
from wan_ray.errors import ConfigError

LARGE, SMALL = Bucket("t2v-14B", "t2v", 1280, 720, 81, 50), Bucket("t2v-1.3B", "t2v", 832, 480, 81, 50)


def section(variant: str = "t2v-14B", **settings: object) -> ModelSection:
    return ModelSection.model_validate({"variant": variant, "checkpoint": "none", "gang": "auto", **settings})


def hardware(gpu: str = "H100-80GB", num_gpus: int = 8) -> HardwareSection:
    return HardwareSection.model_validate({"gpu": gpu, "num_gpus": num_gpus})


def stages(**denoise: object) -> StagesSection:
    return StagesSection.model_validate({"denoise": {"num_gpus": 1, "replicas": {"min": 1, "max": 64}, **denoise}})


def ways(bucket: Bucket, num_gpus: int, gpu: str = "H100-80GB") -> list[Estimate]:
    model = section(bucket.variant)
    return [found for (found,) in estimates(model, [bucket], hardware(gpu, num_gpus), num_gpus=num_gpus)]


@pytest.mark.parametrize(
    ("bucket", "num_gpus", "degrees"),
    [
        (LARGE, 2, Degrees(cfg=2)),
        (LARGE, 4, Degrees(cfg=2, ulysses=2)),
        (LARGE, 8, Degrees(cfg=2, ulysses=4)),
        (LARGE, 16, Degrees(cfg=2, ulysses=8)),
        (SMALL, 8, Degrees(cfg=2, ulysses=4)),
    ],
)
def test_the_soonest_layout_is_guidance_in_two_then_ulysses(bucket: Bucket, num_gpus: int, degrees: Degrees) -> None:
    found = fastest(ways(bucket, num_gpus))
    assert found is not None
    assert found.layout == Layout(degrees=degrees)


def test_the_cheapest_layout_is_the_smallest_that_fits() -> None:
    alone = cheapest(ways(LARGE, 8))
    assert alone is not None
    assert alone.layout == Layout()
    divided = cheapest(ways(LARGE, 8, "A10G-24GB"))
    assert divided is not None
    assert divided.layout.fsdp
    assert cheapest(ways(LARGE, 1, "A10G-24GB")) is None


def estimated(ranks: int, seconds: float) -> Estimate:
    return Estimate(layout=Layout(degrees=Degrees(ulysses=ranks)), seconds=seconds, memory=0.0, fits=True)


@pytest.mark.parametrize(
    ("num_clips", "ends_after_s", "tail"),
    [
        (1, 165, (1, 8)),
        (5, 823, (5, 8)),
        (10, 1581, (2, 4)),
        (20, 3139, (4, 2)),
        (100, 15694, (4, 2)),
        (1000, 156939, None),
    ],
)
def test_the_last_wave_is_widened_as_in_the_performance_map(
    num_clips: int, ends_after_s: float, tail: tuple[int, int] | None
) -> None:
    known = [estimated(1, 1255.5), estimated(2, 628), estimated(4, 326), estimated(8, 164.5)]
    found = tail_layout(num_clips, known[0], known, num_gpus=8)
    plain = -(-num_clips // 8) * known[0].seconds
    assert plain - (found.sooner_s if found else 0) == pytest.approx(ends_after_s, rel=0.01)
    assert (found and (found.num_clips, found.layout.num_gpus)) == tail


def test_gangs_that_take_clips_in_turn_end_when_counted_by_hand() -> None:
    assert finish_seconds([(5, 10.0)], 2) == 30
    assert finish_seconds([(3, 10.0), (2, 1.0)], 2) == 20  # 10 10 | 10 1 1
    assert finish_seconds([(1_000_000, 1.0), (1, 5.0)], 4) == 250_005
    assert most_gangs(3, num_gpus=16, gpus_per_node=8) == 4
    assert most_gangs(16, num_gpus=40, gpus_per_node=8) == 2


def test_one_clip_gets_all_gpus_and_many_get_one_each() -> None:
    one, why = resolve_gang(section(), hardware(), {LARGE: 1}, stages=stages())
    assert (one.cfg_degree, one.ulysses_degree, one.ring_degree) == (2, 4, 1)
    assert "one clip ends after 4 min on 1 x 8 GPUs, after 30 min with one GPU each" in why
    many, why = resolve_gang(section(), hardware(), {LARGE: 1000, SMALL: 9}, stages=stages())
    assert many == GangSection()
    assert "one GPU has the memory" in why


def test_the_gangs_of_a_config_bound_the_choice() -> None:
    fixed, _ = resolve_gang(section(), hardware(), {LARGE: 1000}, stages=stages(replicas=4))
    assert fixed.degrees.world_size == 2
    encode = {"encode": {"num_gpus": 1}, "denoise": {"num_gpus": 1, "replicas": 2}}
    left, _ = resolve_gang(section(), hardware(), {LARGE: 1000}, stages=StagesSection.model_validate(encode))
    assert left.degrees.world_size <= 3


def test_what_does_not_fit_one_gpu_is_divided_and_says_so() -> None:
    gang, why = resolve_gang(section(), hardware("A10G-24GB"), {LARGE: 1000}, stages=stages())
    assert gang.fsdp
    assert gang.degrees.world_size > 1
    assert why.startswith("no A10G-24GB alone has the memory")


def test_quantized_weights_fit_smaller_gpus_and_are_never_divided_or_moved() -> None:
    small = LARGE._replace(width=832, height=480)
    gang, _ = resolve_gang(section(quantization="int8"), hardware("A10G-24GB"), {small: 1000}, stages=stages())
    assert gang == GangSection()
    gang, _ = resolve_gang(section(), hardware("A10G-24GB"), {small: 1000}, stages=stages())
    assert gang.fsdp
    gang, _ = resolve_gang(section(quantization="int8"), hardware("A10G-24GB"), {LARGE: 1000}, stages=stages())
    assert (gang.fsdp, gang.degrees.world_size > 1) == (False, True)
    roomier = roomier_layout(section(quantization="int8", gang=None), LARGE)
    assert roomier is not None
    assert not roomier.offload_blocks


def test_rows_without_guidance_get_no_rank_for_a_second_pass() -> None:
    gang, _ = resolve_gang(section(), hardware(), {LARGE._replace(num_unguided_steps=50): 1}, stages=stages())
    assert gang.degrees == Degrees(ulysses=8)


def test_without_known_gpus_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(ConfigError, match=r"hardware: \{gpu: H100-80GB, num_gpus: 8\}"):
        resolve_gang(section(), None, {LARGE: 1})
    assert resolve_gang(section("debug"), None, {})[0] == GangSection()
    named = GangSection(ulysses_degree=3)
    assert resolve_gang(section(gang=named), None, {}) == (named, "as configured")


@pytest.mark.parametrize(
    ("variant", "settings", "wanted"),
    [
        ("t2v-14B", {"gang": None}, "gang: {ulysses_degree: 2} with offload: blocks"),
        ("t2v-14B", {"gang": {"ulysses_degree": 2}}, "gang: {ulysses_degree: 4} with offload: blocks"),
        ("debug", {}, "None"),
    ],
)
def test_a_roomier_layout_has_more_ranks_of_which_each_needs_less(
    variant: str, settings: dict[str, object], wanted: str
) -> None:
    assert str(roomier_layout(section(variant, **settings), LARGE._replace(variant=variant))) == wanted
