"""The same command again: what failed, what changed, what was cut short, and what another run is at."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from observers import Nobody
from safetensors.torch import load_file, save_file

from wan_ray.cli import INTERRUPTED, INVALID, OK, SOME_FAILED, STOPPED, main
from wan_ray.config import RenderConfig
from wan_ray.graph.run import render as render_run
from wan_ray.replay import replay
from wan_ray.stages.planning import plan_manifest
from wan_ray.storage.blob import Store
from wan_ray.storage.claims import Claims
from wan_ray.storage.index import read_index
from wan_ray.storage.runs import alive, read_runs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(290)]

Write = Callable[[Path, list[dict[str, object]]], None]


@pytest.fixture
def render(debug_config: RenderConfig, tmp_path: Path, write_manifest: Write) -> Callable[..., int]:
    """render(rows, *arguments): the exit code of the command."""

    def run(rows: list[dict[str, object]], *arguments: str) -> int:
        write_manifest(tmp_path / "manifest.parquet", rows)
        (tmp_path / "config.yaml").write_text(debug_config.model_dump_json(exclude_none=True))
        return main(["render", str(tmp_path / "config.yaml"), *arguments])

    return run


def records(folder: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in (folder / "output/records").glob("*.json")}


def test_failed_and_changed_rows_get_another_attempt_and_their_history_stays(
    render: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"id": "kept", "prompt": "A road"}, {"id": "changes", "prompt": "A car"}]
    rows += [{"id": f"more-{n}", "prompt": ["雨夜的街道", "A tunnel"][n % 2], "seed": n} for n in range(5)]
    rows += [{"id": f"image-{n}", "prompt": "A bridge", "task": "t2i", "num_frames": 1} for n in range(2)]
    others = {str(row["id"]) for row in rows[2:]}
    assert render(rows) == OK
    rows[1]["prompt"] = "A truck"
    assert render(rows) == INVALID
    assert "1 rows have a record and now ask for something else: 'changes'" in capsys.readouterr().err
    assert set(records(tmp_path)) == {"kept", "changes", *others}
    assert render(rows, "--changed", "rerender") == OK
    found = records(tmp_path)
    assert set(found) == {"kept", "changes", "changes~2", *others}
    assert (found["changes"]["prompt"], found["changes~2"]["prompt"]) == ("A car", "A truck")
    (now,) = [entry for entry in read_index(Store(tmp_path / "output")).to_pylist() if entry["id"] == "changes"]
    assert (now["attempt"], now["clip"]) == (2, found["changes~2"]["clip"])
    assert len(list((tmp_path / "output/clips").iterdir())) == len(found) == 10
    assert not list((tmp_path / "output/claims").iterdir())

    for stem, record in found.items():
        again = replay(str(tmp_path / "output/records" / f"{stem}.json"), out=tmp_path / "again.mp4")
        assert again.same_bytes
        assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "output" / record["clip"]).read_bytes()
    other = tmp_path / "output/records/kept.json"
    other.write_text(json.dumps({**json.loads(other.read_text()), "seed": 1}))
    assert main(["replay", str(other)]) == SOME_FAILED
    assert "frames differ" in capsys.readouterr().out


def test_one_output_is_not_rendered_with_two_models(
    render: Callable[..., int], debug_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"id": "one", "prompt": "A road"}]
    assert render(rows) == OK
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(debug_checkpoint, moved)
    shutil.copytree(debug_checkpoint, other)
    file = other / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["head.head.bias"][0] += 1
    save_file(tensors, file)
    rows.append({"id": "two", "prompt": "A car"})
    assert render(rows, f"model.checkpoint={other}") == INVALID
    said = capsys.readouterr().err
    assert "were rendered with other weights" in said and str(debug_checkpoint) in said
    assert render(rows, f"model.checkpoint={moved}", "model.dtype=bfloat16") == INVALID
    assert "were rendered with dtype float32, not bfloat16" in capsys.readouterr().err
    assert set(records(tmp_path)) == {"one"}
    assert render(rows, f"model.checkpoint={moved}") == OK


def test_one_output_is_not_rendered_with_two_quantizations_also_when_all_is_done(
    render: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"id": "one", "prompt": "A road"}]
    quantized, apart = "model.quantization=int8", f"output={tmp_path / 'apart'}"
    assert render(rows) == OK
    assert render(rows, quantized) == INVALID
    assert "were rendered with quantization none, not int8; one output would mix both" in capsys.readouterr().err
    assert render(rows) == OK
    assert render(rows, quantized, apart) == OK
    (exact,) = records(tmp_path).values()
    (found,) = [json.loads(file.read_text()) for file in (tmp_path / "apart/records").glob("*.json")]
    assert (found["rendered_on"]["quantization"], exact["rendered_on"].get("quantization")) == ("int8", None)
    assert found["weights"]["transformer"] != exact["weights"]["transformer"]
    assert found["sha256"] != exact["sha256"]
    assert found["content"] == exact["content"]
    assert replay(str(tmp_path / "apart/records/one.json")).same_bytes
    assert render(rows, apart) == INVALID
    assert "were rendered with quantization int8, not none" in capsys.readouterr().err


def test_limits_end_a_run_that_the_same_command_goes_on_with(
    render: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{n}", "prompt": "A road"} for n in range(6)]
    assert render(rows, "limits.deadline=2020-01-01T00:00:00Z") == STOPPED
    assert "limits.deadline=2020-01-01T00:00:00+00:00 has come" in capsys.readouterr().err
    done = len(records(tmp_path))
    assert done < 6
    assert render(rows) == OK
    assert len(records(tmp_path)) == 6
    assert [run["status"] for run in read_runs(Store(tmp_path / "output"))] == ["stopped", "finished"]


DRIVER = """
import sys
import ray
ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
from wan_ray.cli import main
sys.exit(main(["render", sys.argv[1]]))
"""


def start(config: RenderConfig, folder: Path) -> subprocess.Popen[str]:
    """The command in a process and on a Ray of its own."""
    file = folder / "config.yaml"
    file.write_text(config.model_dump_json(exclude_none=True))
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(file)], stderr=subprocess.PIPE, text=True)


def assert_exact(folder: Path, names: list[str]) -> None:
    """Every row once, and nothing else but its clip."""
    found = records(folder)
    assert sorted(found) == sorted(names)
    assert sorted(read_index(Store(folder / "output"))["id"].to_pylist()) == sorted(names)
    clips = sorted(Path(record["clip"]).name for record in found.values())
    assert sorted(file.name for file in (folder / "output/clips").iterdir()) == clips
    assert not [*folder.glob("output/claims/*"), *folder.glob("output/progress/*"), *folder.glob("output/runs/*.alive")]


def test_two_runs_at_once_share_the_rows_and_both_end_well(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Write
) -> None:
    rows = [{"id": f"r{n:02d}", "prompt": f"A road, take {n}", "num_inference_steps": 60} for n in range(12)]
    write_manifest(tmp_path / "manifest.parquet", rows)
    runs = [start(debug_config, tmp_path) for _ in range(2)]
    try:
        said = [run.communicate(timeout=270)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [OK, OK], said
    assert_exact(tmp_path, [str(row["id"]) for row in rows])
    counts = [run["counts"] for run in read_runs(Store(tmp_path / "output"))]
    assert sum(count["rendered"] for count in counts) == 12
    assert [count["ok"] for count in counts] == [12, 12]
    assert len({record["run_id"] for record in records(tmp_path).values()}) == 2


def test_a_run_that_is_told_to_end_ends_at_once_and_loses_nothing(
    render: Callable[..., int],
    debug_config: RenderConfig,
    tmp_path: Path,
    write_manifest: Write,
    eventually: Callable[..., bool],
) -> None:
    rows: list[dict[str, object]] = [
        {"id": "short", "prompt": "A road", "num_inference_steps": 2, "num_frames": 5},
        {"id": "long", "prompt": "A car", "num_inference_steps": 1000, "num_frames": 13},
    ]
    write_manifest(tmp_path / "manifest.parquet", rows)
    run = start(debug_config, tmp_path)
    try:
        assert eventually(lambda: "short" in records(tmp_path), within_s=200)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=100)
    finally:
        run.kill()
    assert run.returncode == INTERRUPTED, said
    assert set(records(tmp_path)) == {"short"}
    assert read_runs(Store(tmp_path / "output"))[0]["status"] == "stopped"
    rows[1]["num_inference_steps"] = 2
    assert render(rows, "--changed", "rerender") == OK
    assert main(["gc", str(tmp_path / "output"), "--older-than", "0"]) == OK
    assert_exact(tmp_path, ["short", "long"])


class Waiting(Nobody):
    """An observer that has the other run end once this one waits for it."""

    def __init__(self, other_ends: threading.Event) -> None:
        self.other_ends = other_ends
        self.waited_for: list[int] = []

    def waiting(self, num_rows: int) -> None:
        self.waited_for.append(num_rows)
        self.other_ends.set()


def test_a_run_that_is_told_to_end_while_ray_starts_says_that_it_was_interrupted(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Write, eventually: Callable[..., bool]
) -> None:
    write_manifest(tmp_path / "manifest.parquet", [{"id": "one", "prompt": "A road"}])
    file = tmp_path / "config.yaml"
    file.write_text(debug_config.model_copy(update={"ray_address": "local"}).model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "wan_ray.cli", "render", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:

        def has_raylet() -> bool:
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            return any("raylet/raylet" in Path(f"/proc/{child}/cmdline").read_text() for child in children)

        assert eventually(has_raylet, within_s=60)
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=60)[1]
    assert run.returncode == INTERRUPTED, said
    assert "interrupted; the same command goes on from here" in said


def test_a_run_waits_for_rows_that_another_has_and_takes_them_when_it_dies(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Write
) -> None:
    store, started, ended = Store(tmp_path / "output"), threading.Event(), threading.Event()

    def other_run() -> None:
        with alive(store, "another"):
            Claims(store, "another").take("r1", 1)
            started.set()
            ended.wait(240)

    other = threading.Thread(target=other_run)
    other.start()
    assert started.wait(10)
    write_manifest(tmp_path / "manifest.parquet", [{"id": "r0", "prompt": "A road"}, {"id": "r1", "prompt": "A car"}])
    observer = Waiting(ended)
    try:
        summary = render_run(debug_config, plan_manifest(debug_config), observer=observer)
    finally:
        ended.set()
        other.join()
    assert (summary.ok, summary.rendered, observer.waited_for) == (2, 2, [1])
    assert_exact(tmp_path, ["r0", "r1"])
