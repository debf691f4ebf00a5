"""The batch graph on a real Ray cluster: what is rendered, recorded and indexed, once and only once."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wan_ray.cli import INVALID, OK, SOME_FAILED, STOPPED, main
from wan_ray.config import RenderConfig
from wan_ray.media.video import probe
from wan_ray.storage.blob import Store
from wan_ray.storage.runs import read_runs

Write = Callable[[Path, list[dict]], None]

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster"), pytest.mark.timeout(300)]

BAD = {
    5: ("clip-04", "row 4"),
    11: ("80", "77 or 81"),
    17: ("50", "multiple of 16"),
    23: ("prompt", "no text"),
    29: ("t2x", "t2v"),
    35: ("10003", "5000"),
}


def config_file(config: RenderConfig, folder: Path) -> str:
    file = folder / "config.json"  # JSON is YAML
    file.write_text(config.model_dump_json(exclude_none=True))
    return str(file)


def index_of(output: str | Path) -> list[dict]:
    return pq.read_table(Path(output) / "index").to_pylist()


@pytest.fixture(scope="module")
def forty(
    cluster: None,
    debug_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    forty_rows: list[dict],
    write_manifest: Write,
) -> dict:
    """Forty rows, six of them bad, rendered once through the command; what the tests below look at."""
    folder = tmp_path_factory.mktemp("forty")
    write_manifest(folder / "manifest.parquet", forty_rows)
    stage = {"num_cpus": 0.2}
    config = {
        "model": {"variant": "debug", "checkpoint": str(debug_checkpoint), "device": "cpu"},
        "manifest": "manifest.parquet",
        "output": "output",
        "defaults": {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 2},
        "stages": {name: stage for name in ("encode", "denoise", "decode", "publish")},
        "video": {"threads": 1},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))
    with_bad = main(["render", str(file)])
    started = list(folder.glob("output/**/*"))
    code = main(["render", str(file), "--skip-invalid"])
    return {"folder": folder, "file": str(file), "refused": with_bad, "started": started, "code": code}


def test_invalid_rows_keep_the_run_from_starting_unless_they_are_to_be_skipped(forty: dict) -> None:
    assert forty["refused"] == INVALID
    assert forty["started"] == []
    assert forty["code"] == SOME_FAILED


def test_plan_names_each_bad_row_with_its_rule(forty: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", forty["file"]]) == INVALID
    lines = {int(s.split()[1]): s for s in capsys.readouterr().out.splitlines() if s.strip().startswith("row ")}
    assert sorted(lines) == sorted(BAD)
    for row, words in BAD.items():
        assert all(word in lines[row] for word in words), lines[row]


def test_the_index_has_one_row_per_manifest_row(forty: dict) -> None:
    index = index_of(forty["folder"] / "output")
    assert sorted(entry["row"] for entry in index) == list(range(40))
    assert Counter(entry["status"] for entry in index) == {"ok": 34, "failed": 6}
    failed = {entry["row"]: entry for entry in index if entry["status"] == "failed"}
    for row, words in BAD.items():
        assert failed[row]["error_type"] == "RequestError"
        assert all(word in failed[row]["error_message"] for word in words)
    assert {entry["scene"] for entry in index} == {"scene-0", "scene-1", "scene-2", "scene-3"}


def test_every_record_describes_a_clip_that_is_there(forty: dict) -> None:
    import hashlib

    output = forty["folder"] / "output"
    ok = [entry for entry in index_of(output) if entry["status"] == "ok"]
    assert len({entry["seed"] for entry in ok}) == 34
    for entry in ok:
        data = (output / entry["clip"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert len(data) == entry["size_bytes"]
        if entry["task"] == "t2i":
            assert entry["clip"].endswith(".png") and entry["num_frames"] == 1
        else:
            info = probe(output / entry["clip"])
            assert (info.width, info.height, info.num_frames, info.fps) == (64, 48, 5, 16)
        assert all(entry[f"seconds_{stage}"] > 0 for stage in ("encode", "denoise", "decode", "publish"))
        assert {name for name, _ in entry["weights"]} == {"text_encoder", "transformer", "vae"}
    assert len(list(output.glob("clips/*"))) == 34


def test_the_second_run_renders_nothing_and_says_so(forty: dict, capfd: pytest.CaptureFixture[str]) -> None:
    output = forty["folder"] / "output"
    before = {path: path.stat().st_mtime_ns for path in output.glob("clips/*")}
    assert main(["render", forty["file"], "--skip-invalid"]) == SOME_FAILED
    said = capfd.readouterr()
    assert "nothing to render; 40 have records already" in said.err
    assert "rendered 0 now" in said.out
    assert {path: path.stat().st_mtime_ns for path in output.glob("clips/*")} == before
    assert len(index_of(output)) == 40


def test_the_same_rows_give_the_same_bytes_in_another_run(forty: dict, tmp_path: Path) -> None:
    overrides = ["--output", str(tmp_path / "again"), "--limit", "12", "--skip-invalid"]
    assert main(["render", forty["file"], *overrides]) == SOME_FAILED
    first = {entry["row"]: entry["sha256"] for entry in index_of(forty["folder"] / "output")}
    again = {entry["row"]: entry["sha256"] for entry in index_of(tmp_path / "again")}
    assert len(again) == 12
    assert again == {row: first[row] for row in range(12)}


def test_status_counts_and_groups_what_failed(forty: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(forty["folder"] / "output")]) == OK
    said = capsys.readouterr().out
    assert "40 records: 34 ok, 6 failed" in said
    assert said.count("RequestError at read") == 6


def test_a_run_that_was_cut_short_is_finished_by_the_same_command(
    forty: dict, tmp_path: Path, forty_rows: list[dict], write_manifest: Write
) -> None:
    """As after a crash: some rows have no record yet, and one record has not reached the index."""
    folder = tmp_path / "cut"
    write_manifest(tmp_path / "six.parquet", forty_rows[:5] + forty_rows[6:7])
    command = ["render", forty["file"], "--manifest", str(tmp_path / "six.parquet"), "--output", str(folder)]
    assert main([*command, "--limit", "3"]) == OK
    for part in (folder / "index").iterdir():
        part.unlink()
    (folder / "records" / "clip-01.json").unlink()
    assert main(command) == OK
    assert sorted(entry["id"] for entry in index_of(folder)) == [f"clip-0{n}" for n in (0, 1, 2, 3, 4, 6)]
    runs = read_runs(Store(folder))
    assert [run["counts"]["rendered"] for run in runs] == [3, 4]


def test_weights_that_give_no_finite_latents_fail_each_row_by_name(
    debug_config: RenderConfig, debug_checkpoint: Path, tmp_path: Path, write_manifest: Write
) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(debug_checkpoint, broken)
    file = broken / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["head.head.bias"][0] = float("nan")
    save_file(tensors, file)
    write_manifest(tmp_path / "manifest.parquet", [{"id": "one", "prompt": "A road"}, {"id": "two", "prompt": "路"}])
    model = debug_config.model.model_copy(update={"checkpoint": str(broken)})
    assert main(["render", config_file(debug_config.model_copy(update={"model": model}), tmp_path)]) == SOME_FAILED
    index = index_of(tmp_path / "output")
    assert {(entry["id"], entry["error_stage"], entry["error_type"]) for entry in index} == {
        ("one", "decode", "StageError"),
        ("two", "decode", "StageError"),
    }
    assert all("NaN or infinity" in entry["error_message"] for entry in index)


def test_a_store_that_refuses_clips_stops_the_run_and_the_same_command_finishes_it(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "manifest.parquet", [{"id": "one", "prompt": "A road"}])
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "clips").write_text("in the way")
    command = ["render", config_file(debug_config, tmp_path)]
    assert main(command) == STOPPED
    assert "clips" in capsys.readouterr().err
    assert not list(tmp_path.glob("output/records/*"))
    (tmp_path / "output" / "clips").unlink()
    assert main(command) == OK
    assert [entry["status"] for entry in index_of(tmp_path / "output")] == ["ok"]


def test_graph_and_renderer_give_the_same_latents_and_the_same_clip(
    debug_config: RenderConfig, debug_checkpoint: Path, tmp_path: Path, write_manifest: Write
) -> None:
    import ray.data
    import torch

    from wan_ray import Renderer, RenderRequest
    from wan_ray.graph.board import Board
    from wan_ray.graph.leader import Denoise
    from wan_ray.graph.operator import Encode, read_any
    from wan_ray.media.video import encode_mp4
    from wan_ray.stages.items import Item

    row = {"id": "same", "prompt": "A red car, 雨夜", "num_frames": 9}
    board = ray.remote(num_cpus=0)(Board).remote()
    shared = {"model": debug_config.model, "board": board}
    encodes = {"video": debug_config.video, "run_id": "same", "output": None}
    leads = {"stages": debug_config.stages, "output": None, "run_id": "same"}
    dataset = ray.data.from_items([row]).map(read_any, fn_kwargs={"config": debug_config}, num_cpus=0.2)
    for operator, own in ((Encode, encodes), (Denoise, leads)):
        dataset = (dataset.flat_map if operator is Encode else dataset.map)(
            operator, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.2, fn_constructor_kwargs={**shared, **own}
        )
    (denoised,) = dataset.take_all()
    renderer = Renderer.from_checkpoint(debug_checkpoint, device="cpu")
    rendered = renderer(RenderRequest(**{"width": 64, "height": 48, "num_inference_steps": 2, **row}))
    assert torch.equal(Item.from_row(denoised).tensors["latents"], rendered.latents)

    write_manifest(tmp_path / "manifest.parquet", [row])
    assert main(["render", config_file(debug_config, tmp_path)]) == OK
    (entry,) = index_of(tmp_path / "output")
    by_hand = tmp_path / "by-hand.mp4"
    encode_mp4([rendered.frames], path=by_hand, width=64, height=48, fps=16, crf=10, preset="medium", threads=1)
    assert (tmp_path / "output" / entry["clip"]).read_bytes() == by_hand.read_bytes()
