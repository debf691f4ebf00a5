"""What ends a run early, by its config's limits."""

import time

import pytest
from observers import Nobody

from wan_ray.config import RenderConfig
from wan_ray.errors import RunStoppedError
from wan_ray.graph.ending import Ending
from wan_ray.graph.offline import new_board
from wan_ray.storage.records import Record

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(60)]


def an_hour_of_denoising(**fields: object) -> Record:
    given = {"name": "a", "id": "a", "status": "ok", "run_id": "r", "created_at": "2026-01-01T00:00:00Z", **fields}
    return Record.model_validate({"variant": "debug", "seconds": {"denoise": 3600.0}, **given})


@pytest.fixture
def ending(debug_config: RenderConfig):
    """ending(limit=value): one for a run whose gangs have two ranks of one GPU, at 2.5 an hour."""

    def make(**limits: object) -> Ending:
        data = debug_config.model_dump()
        data["model"]["gang"] = {"ulysses_degree": 2}
        data["stages"]["denoise"]["num_gpus"] = 1
        data |= {"hardware": {"price_per_gpu_hour": 2.5}, "limits": limits}
        config = RenderConfig.model_validate(data)
        return Ending(config, {"run_id": "r", "config": config.model_dump(mode="json")}, new_board(), Nobody())

    return make


@pytest.mark.parametrize(
    ("limits", "num_records", "told"),
    [
        ({"max_gpu_hours": 5}, 3, r"6 GPU-hours of work reach limits.max_gpu_hours=5"),
        ({"max_cost": 10}, 2, r"work for 10 reaches limits.max_cost=10"),
    ],
)
def test_the_record_that_reaches_a_limit_ends_the_run(ending, limits, num_records, told) -> None:
    with ending(**limits) as run:
        for _ in range(num_records - 1):
            run.check(an_hour_of_denoising())
        with pytest.raises(RunStoppedError, match=told):
            run.check(an_hour_of_denoising())


def test_failures_count_but_not_of_rows_that_broke_a_rule(ending) -> None:
    with (
        pytest.raises(RunStoppedError, match=r"2 rows failed, and limits.max_failures=1"),
        ending(max_failures=1) as run,
    ):
        run.check(an_hour_of_denoising(status="failed", variant=None))
        run.check(an_hour_of_denoising(status="failed"))
        run.check(an_hour_of_denoising())
        run.check(an_hour_of_denoising(status="failed"))


def test_a_deadline_ends_a_run_in_which_nothing_ends(ending) -> None:
    with (
        pytest.raises(RunStoppedError, match=r"limits.deadline=2026-01-01T00:00:00"),
        ending(deadline="2026-01-01T00:00Z"),
    ):
        time.sleep(30)


def test_without_limits_nothing_ends(ending) -> None:
    with ending() as run:
        for _ in range(100):
            run.check(an_hour_of_denoising(status="failed"))
