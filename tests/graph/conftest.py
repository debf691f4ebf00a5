"""One small Ray cluster for all of these tests, and manifests to render on it."""

import os
import time

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.config import RenderConfig

LONG = "a road " * 1429  # 10,003 characters
SMALL = {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 2}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture
def debug_config(debug_checkpoint: Path, tmp_path: Path) -> RenderConfig:
    """A config for small clips; the manifest is the test's to write."""
    stage = {"num_cpus": 0.2}
    return RenderConfig.model_validate(
        {
            "model": {"variant": "debug", "checkpoint": str(debug_checkpoint), "device": "cpu"},
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "output"),
            "defaults": SMALL,
            "stages": {name: stage for name in ("encode", "denoise", "decode", "publish")},
            "video": {"threads": 1},
            "no_progress_timeout_s": 240,
        }
    )


@pytest.fixture(scope="session")
def write_manifest() -> Callable[[Path, list[dict[str, object]]], None]:
    return lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="session")
def forty_rows() -> list[dict[str, object]]:
    """34 good rows (two tasks, two languages, one shared prompt) and six bad ones, at rows 5, 11, 17, 23, 29 and 35."""
    rows: list[dict[str, object]] = [
        {
            "id": f"clip-{n:02d}",
            "task": "t2i" if n % 5 == 0 else "t2v",
            "prompt": ["A red car on a highway", "雨夜的街道，霓虹灯倒影", f"A tunnel, take {n}"][n % 3],
            "num_frames": None,
            "width": None,
            "height": None,
            "scene": f"scene-{n // 10}",
        }
        for n in range(40)
    ]
    rows[5]["id"] = "clip-04"
    rows[11] |= {"num_frames": 80}
    rows[17] |= {"width": 50, "height": 48}
    rows[23] |= {"prompt": ""}
    rows[29] |= {"task": "t2x"}
    rows[35] |= {"prompt": LONG, "task": "t2v"}
    return rows


@pytest.fixture(scope="session")
def eventually() -> Callable[..., bool]:
    """eventually(holds, within_s=30): whether holds() comes true in that time."""

    def wait(holds: Callable[[], bool], *, within_s: float = 30.0) -> bool:
        end = time.monotonic() + within_s
        while not (held := holds()) and time.monotonic() < end:
            time.sleep(0.2)
        return held

    return wait
