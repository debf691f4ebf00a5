import os
import subprocess
import sys
import time

import pytest

from wan_ray.errors import StorageError
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import alive, living_runs, read_runs, write_run

LIVE = """
import sys, time
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import alive
with alive(Store(sys.argv[1]), "r1"):
    print("alive", flush=True)
    time.sleep(60)
"""


def entry(run_id, **fields):
    return {"run_id": run_id, "num_rows": 3, **fields}


def test_runs_are_kept_in_the_order_they_began_and_updated_in_place(tmp_path):
    store = Store(tmp_path)
    assert read_runs(store) == []
    write_run(store, entry("b", started_at="2026-01-01T00:00:00", status="running", config={"output": "夜"}))
    write_run(store, entry("a", started_at="2026-01-02T00:00:00", status="running"))
    write_run(store, entry("b", started_at="2026-01-01T00:00:00", status="finished"))
    assert [(run["run_id"], run["status"]) for run in read_runs(store)] == [("b", "finished"), ("a", "running")]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"runs": 3}', b"\xff"])
def test_a_run_file_of_another_tool_is_told(tmp_path, content):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"runs/a\.json' is not a run of wan-ray.*move it away"):
        read_runs(Store(tmp_path))


def test_a_run_is_alive_until_it_ends(tmp_path):
    store = Store(tmp_path)
    with alive(store, "r1"):
        assert living_runs(store) == {"r1"}
    assert living_runs(store) == set()
    assert read_runs(store) == []


def test_a_run_whose_process_was_killed_on_this_machine_is_dead_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LIVE, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"alive\n"
    assert living_runs(Store(tmp_path)) == {"r1"}
    process.kill()
    process.wait()
    assert living_runs(Store(tmp_path)) == set()


def test_a_run_elsewhere_that_has_been_silent_for_long_is_dead(tmp_path):
    store = Store(tmp_path)
    store.put("runs/far.alive", b'{"machine": ["another"], "pid": 1, "started": "1"}')
    assert living_runs(store) == {"far"}
    long_ago = time.time() - 120
    os.utime(tmp_path / "runs/far.alive", (long_ago, long_ago))
    assert living_runs(store) == set()
