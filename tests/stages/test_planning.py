"""A plan made by several processes; what a plan says of rows stands in test_read.py."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wan_ray.config import ModelSection, RenderConfig
from wan_ray.errors import ConfigError
from wan_ray.stages import planning
from wan_ray.stages.planning import plan_manifest

NUM_ROWS = 6_000


@pytest.fixture
def config(tmp_path):
    """Rows of two shapes; of every hundred one has the id of an earlier batch's row, one no prompt, one no id."""
    n = NUM_ROWS
    ids = [f"clip-{i % 4000 if i % 100 == 0 else i}" for i in range(n)]
    columns = {
        "id": [None if i % 100 == 99 else one for i, one in enumerate(ids)],
        "prompt": ["" if i % 100 == 7 else f"雨夜 {i}" for i in range(n)],
        "num_frames": [(5, 85)[i % 2] for i in range(n)],
        "city": ["東京"] * n,
    }
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet", row_group_size=2500)
    return RenderConfig(
        model=ModelSection(variant="debug", checkpoint="x"), manifest=str(tmp_path / "manifest.parquet")
    )


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(planning, "_ROWS_WORTH_PROCESSES", 1000)
    monkeypatch.setattr(planning, "_num_cores", lambda: 2)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("limit", [None, 4500])
def test_several_processes_make_the_plan_that_one_makes(config, monkeypatch, two_processes, limit):
    plan = plan_manifest(config, limit=limit)
    monkeypatch.setattr(planning, "_num_cores", lambda: 1)
    alone = plan_manifest(config, limit=limit)
    assert plan == alone
    repeats = [item.row for item in plan.refused if "already" in item.failure.message]
    assert repeats == [i for i in range(limit or NUM_ROWS) if i >= 4000 and i % 100 == 0]
    assert len(plan.names) == (limit or NUM_ROWS)
    assert sum(plan.warnings.values()) == len(plan.names) // 2 - len(plan.names) // 100  # of the 85 frames, the sound


@pytest.mark.timeout(120)
def test_a_plan_is_whole_when_a_process_that_makes_it_is_killed(config, monkeypatch, two_processes):
    killed = []

    def kill_one():
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)
        killed.append(children[0].pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    plan = plan_manifest(config)
    killer.join()
    monkeypatch.setattr(planning, "_num_cores", lambda: 1)
    assert killed and plan == plan_manifest(config)


@pytest.mark.timeout(120)
def test_a_batch_that_no_process_can_read_is_an_error_of_its_own(config, tmp_path, two_processes):
    day = pa.array([2**62] * 2000, pa.timestamp("us"))  # beyond what Python's dates hold
    pq.write_table(pa.table({"prompt": ["a"] * 2000, "day": day}), tmp_path / "manifest.parquet")
    with pytest.raises(ConfigError, match=r"row group 0 of .* holds a value that is not sound"):
        plan_manifest(config)
    assert not multiprocessing.active_children()


@pytest.mark.timeout(120)
def test_ctrl_c_ends_all_processes_of_a_plan(tmp_path):
    pq.write_table(
        pa.table({"prompt": [f"A road by the sea, take {i}" for i in range(600_000)]}), tmp_path / "manifest.parquet"
    )
    config = tmp_path / "config.yaml"
    config.write_text("model: {variant: debug, checkpoint: x}\nmanifest: manifest.parquet\n")
    code = (
        "from wan_ray.stages import planning; planning._num_cores = lambda: 2\n"
        "from wan_ray.cli import main; exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "plan", str(config)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while sum(_seconds_at_work(child) for child in children.read_text().split()) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    at_work = children.read_text().split()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; the same command goes on from here\n"
    while any(Path(f"/proc/{child}").exists() for child in at_work):  # until the test's time is up
        time.sleep(0.1)


def _seconds_at_work(pid):
    user = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]
    return int(user) / os.sysconf("SC_CLK_TCK")
