"""What a run reports, read where Prometheus would read it: at the metrics port of a real Ray node."""

import re
import time
from typing import Any
from urllib.request import urlopen

import pytest

from wan_ray.config import RenderConfig
from wan_ray.graph.board import Event, GangState, Snapshot
from wan_ray.graph.metrics import METRICS, RunMetrics
from wan_ray.storage.records import Record

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(120)]

GANG = GangState(worker="g", epoch=1, ranks=("host:1", "host:2"))


def record(name: str, **fields: object) -> Record:
    return Record(name=name, id=name, run_id="run", created_at="2026-01-01T00:00:00+00:00", **fields)


def event(stage: str, name: str, seconds: float | None = None, **fields: object) -> Event:
    return Event(stage=stage, id=name, worker={"denoise": "g"}.get(stage, stage), seconds=seconds, **fields)


def scraped(worker: str) -> dict[frozenset[str], float]:
    """What one process reports: values by series and its labels, without the labels that Ray adds."""
    import ray

    (node,) = ray.nodes()
    found = {}
    for line in (
        urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10).read().decode().splitlines()
    ):
        match = re.match(r"ray_(wan_ray_\w+)\{(.*)\} (\S+)$", line)
        if match and f'WorkerId="{worker}"' in line:
            labels = re.findall(r'\b(stage|outcome|error|le)="([^"]+)"', match[2])
            found[frozenset([match[1], *(f"{name}={value}" for name, value in labels)])] = float(match[3])
    return found


@pytest.fixture
def driver() -> Any:
    """Stands for a driver of its own, so that what other tests report does not count: what its observer was told."""
    import ray

    @ray.remote(num_cpus=0)
    class Driver:
        def run(self, config: RenderConfig, calls: list[tuple[str, tuple, dict]]) -> tuple[str, list]:
            class Seen:
                def __init__(self) -> None:
                    self.calls: list[tuple[str, tuple, dict]] = []

                def __getattr__(self, name):
                    return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

            self.metrics = RunMetrics(config, seen := Seen())
            for name, args, kwargs in calls:
                getattr(self.metrics, name)(*args, **kwargs)
            return ray.get_runtime_context().get_worker_id(), seen.calls

    actor: Any = Driver.remote()
    yield actor
    ray.kill(actor)


def test_a_run_s_series_stand_at_ray_s_metrics_port(driver: Any) -> None:
    import ray

    config = RenderConfig.model_validate(
        {
            "model": {"variant": "t2v-14B", "checkpoint": "/models/any"},
            "stages": {"denoise": {"num_gpus": 0.8}, "decode": {"num_gpus": 0.2}},
            "hardware": {"gpu": "H100-80GB", "num_gpus": 8},
        }
    )
    lost = GangState(worker="g", epoch=3)
    shape = {"width": 832, "height": 480, "num_frames": 81, "num_inference_steps": 50}
    shape |= {"guidance_scale": 5.0, "guidance_interval": [0.0, 0.6]}
    encoded = [event("encode", "a", 1.0), event("encode", "b", 1.0), event("encode", "c", 1.0, error="why")]
    snapshots = [
        Snapshot(events=[event("encode", name) for name in ("a", "b", "c")], inside={"encode": 3}, gangs=[]),
        Snapshot(events=[*encoded, event("denoise", "a")], inside={"denoise": 1}, gangs=[GANG]),
        Snapshot(events=[event("denoise", "a", 100.0), event("denoise", "b")], inside={"denoise": 1}, gangs=[GANG]),
        Snapshot(events=[event("denoise", "b", died=True), event("decode", "a")], inside={"denoise": 0}, gangs=[lost]),
        Snapshot(events=[event("decode", "a", 10.0)], inside={}, gangs=[lost]),
    ]
    calls = [
        ("begin", (), {"num_rows": 5, "num_done": 1}),
        ("ended", (record("bad", status="failed", error_stage="read", error_type="RequestError"),), {}),
        *(("tick", (snapshot,), {}) for snapshot in snapshots),
        ("ended", (record("a", status="ok", variant="t2v-14B", task="t2v", **shape),), {}),
    ]
    worker, passed_on = ray.get(driver.run.remote(config, calls))
    assert passed_on == calls

    wanted = {
        "wan_ray_rows_total outcome=ok": 1,
        "wan_ray_rows_total outcome=failed error=RequestError": 1,
        "wan_ray_rows_left": 3,
        "wan_ray_stage_in_flight stage=denoise": 0,
        "wan_ray_stage_waiting stage=encode": 1,
        "wan_ray_stage_waiting stage=denoise": 1,  # the row whose worker died
        "wan_ray_stage_waiting stage=decode": 0,
        "wan_ray_stage_waiting stage=publish": 2,  # one rendered, one that failed at encode
        "wan_ray_stage_seconds_count stage=encode": 3,
        "wan_ray_stage_seconds_bucket stage=denoise le=100.0": 1,
        "wan_ray_stage_seconds_bucket stage=denoise le=30.0": 0,
        "wan_ray_gpu_seconds_total stage=denoise": 160,
        "wan_ray_gpu_seconds_total stage=decode": 2,
        "wan_ray_rank_seconds_total": 200,
        "wan_ray_denoise_tflop_total": pytest.approx(134_270, rel=0.01),  # 50 steps, 30 guided: 80 passes of 1678.4
        "wan_ray_gpu_peak_tflops": pytest.approx(794.5),
        "wan_ray_gangs_up": 0,
        "wan_ray_gang_rebuilds_total": 2,
        "wan_ray_worker_deaths_total stage=denoise": 1,
    }
    names = {name: frozenset(name.split()) for name in wanted}
    end = time.monotonic() + 60
    while len(values := scraped(worker)) < len(wanted) and time.monotonic() < end:
        time.sleep(1)
    assert {name: values.get(key) for name, key in names.items()} == wanted
    assert {name for name in METRICS if any(one.startswith(name) for key in values for one in key)} == set(METRICS)
