"""`ray job submit` of jobs/render.py on a real head node: killed, stopped, submitted again, and exact at the end."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
NUM_ROWS = 16

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head node of its own, started from an environment as a cluster's image has it."""

    environment: Path
    address: str
    metrics: str

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of the environment says."""
        variables = {**os.environ, "PATH": f"{self.environment}/bin:/usr/bin:/bin", "RAY_ADDRESS": self.address}
        variables.pop("PYTHONPATH", None)
        done = subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, outside of those that Ray gives its workers."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(21000, 32000)
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                found.add(port)
    return sorted(found)


@contextmanager
def head_node(environment: Path) -> Iterator[Head]:
    # Paths of sockets may be no longer than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="wan", dir="/tmp"))
    names = ["port", "dashboard-port", "metrics-export-port", "ray-client-server-port", "dashboard-agent-listen-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    variables = {
        **os.environ,
        "PATH": f"{environment}/bin:/usr/bin:/bin",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    variables.pop("PYTHONPATH", None)
    command = [f"{environment}/bin/ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats"]
    command += [f"--temp-dir={folder}", "--object-store-memory=150000000"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        until(
            lambda: answers(f"{address}/api/version"),
            "the head node answers",
            (folder / "head.log").read_text,
        )
        yield Head(
            environment=environment, address=address, metrics=f"http://127.0.0.1:{ports['metrics-export-port']}/metrics"
        )
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[int]:
    """Those that are left of the head node whose folder this is."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def answers(url: str) -> str | None:
    try:
        return urlopen(url, timeout=5).read().decode()
    except OSError:
        return None


def until(condition: Callable[[], object], what: str, said: Callable[[], str] = str) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, f"not in 120 s: {what}\n{said()}"
        time.sleep(0.3)


@pytest.fixture
def render(debug_checkpoint: Path, tmp_path: Path) -> list[str]:
    """Arguments of jobs/render.py that render NUM_ROWS small clips into tmp_path/output."""
    row = {"num_frames": 9, "num_inference_steps": 60}  # two seconds of work, so that a job can be hit in the middle
    rows = [{"id": f"clip-{n:02d}", "prompt": f"A road, take {n}", **row} for n in range(NUM_ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "manifest.parquet")
    stages = [f"stages.{stage}.num_cpus=0.2" for stage in ("encode", "denoise", "decode", "publish")]
    places = ["--manifest", str(tmp_path / "manifest.parquet"), "--output", str(tmp_path / "output")]
    return ["ray_address=auto", f"model.checkpoint={debug_checkpoint}", *stages, *places]


def records(output: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(output.glob("records/*.json"))]


def assert_exact(output: Path, *, num_rows: int) -> None:
    """Every row once: a record, a row of the index and a clip that has the record's checksum."""
    names = [f"clip-{n:02d}" for n in range(num_rows)]
    found = records(output)
    assert [record["id"] for record in found] == names
    assert sorted(pq.read_table(output / "index")["id"].to_pylist()) == names
    assert sorted(path.name for path in output.glob("clips/*")) == sorted(Path(r["clip"]).name for r in found)
    for record in found:
        assert record["status"] == "ok"
        assert hashlib.sha256((output / record["clip"]).read_bytes()).hexdigest() == record["sha256"]


def test_a_job_from_a_working_directory_that_is_killed_and_stopped_is_finished_by_the_same_command(
    bare_environment: Path, build_context: list[str], render: list[str], tmp_path: Path
) -> None:
    output, checkout = tmp_path / "output", tmp_path / "checkout"
    for name in build_context:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    with head_node(bare_environment) as head:
        assert "ModuleNotFoundError" in head.run("python", "-c", "import wan_ray", check=False)
        submit = ["ray", "job", "submit", "--working-dir", str(checkout)]
        job = ["--", "python", "jobs/render.py", "configs/debug.yaml", *render]

        head.run(*submit, "--no-wait", "--submission-id", "first", *job)
        logs = lambda: head.run("ray", "job", "logs", "first", check=False)  # noqa: E731
        until(lambda: len(records(output)) >= 3, "three rows have a record", logs)
        until(lambda: "ray_wan_ray_rows_total" in (answers(head.metrics) or ""), "the metrics port shows the run", logs)
        about = lambda: json.loads(answers(f"{head.address}/api/jobs/first") or "{}")  # noqa: E731
        os.kill(int(about()["driver_info"]["pid"]), signal.SIGKILL)
        until(lambda: about().get("status") == "FAILED", "the first job fails", logs)
        after_kill = len(records(output))

        head.run(*submit, "--no-wait", "--submission-id", "second", *job)
        until(lambda: len(records(output)) >= min(after_kill + 2, NUM_ROWS), "two more rows have a record")
        head.run("ray", "job", "stop", "second", check=False)
        after_stop = len(records(output))

        said = head.run(*submit, "--submission-id", "third", *job)
        assert f"{NUM_ROWS} of {NUM_ROWS} rows have a clip, 0 failed" in said
        assert 3 <= after_kill < NUM_ROWS
        assert after_kill + 2 <= after_stop <= NUM_ROWS
    assert_exact(output, num_rows=NUM_ROWS)


def test_a_job_runs_from_the_image_without_a_working_directory(image: Any, render: list[str], tmp_path: Path) -> None:
    with head_node(image.environment) as head:
        script, config = (str(image.root / "app" / name) for name in ("jobs/render.py", "configs/debug.yaml"))
        said = head.run("ray", "job", "submit", "--", "python", script, config, *render, "--limit", "3")
        assert "3 of 3 rows have a clip, 0 failed" in said
    assert_exact(tmp_path / "output", num_rows=3)
