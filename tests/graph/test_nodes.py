"""A cluster whose nodes come and go: what comes is used, what goes is survived."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wan_ray.config import RenderConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

PROGRAM = Path(__file__).with_name("come_and_go.py")


def test_nodes_that_come_are_used_and_those_that_go_are_survived(
    debug_config: RenderConfig, tmp_path: Path, write_manifest
) -> None:
    rows = [{"id": f"clip-{n}", "prompt": "A road", "num_inference_steps": 800} for n in range(6)]
    write_manifest(tmp_path / "manifest.parquet", rows)
    data = debug_config.model_dump()
    data["stages"]["denoise"] = {"num_cpus": 0.2, "num_gpus": 1, "replicas": {"min": 1, "max": 2}}
    data["stages"]["decode"] = {"num_cpus": 0.2, "replicas": {"min": 1, "max": 2}}
    (tmp_path / "config.json").write_text(RenderConfig.model_validate(data).model_dump_json(exclude_none=True))
    command = [sys.executable, str(PROGRAM), str(tmp_path / "config.json"), str(tmp_path / "told.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=390, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["ok"], told["alone"], told["together"]) == (6, 1, 2)
    assert told["left"]
    assert told["resumed_at"] >= told["drained_at"]
