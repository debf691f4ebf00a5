"""schemathesis against /openapi.json: whatever is sent, no 5xx, and no answer that the document does not describe."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving_app import serving_app

from wan_ray.serving.keys import Keys, key_line

KEY = "wr_" + "f" * 43
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance"
)
# So that what is accepted takes little time, and the queue is full now and then.
LIMITS = {"max_frames": 9, "max_inference_steps": 2, "max_queued": 30, "requests_per_minute": 1_000_000}


def test_no_request_brings_an_answer_that_is_not_described(
    pytestconfig: pytest.Config,
    tmp_path: Path,
    debug_checkpoint: Path,
    debug_i2v_checkpoint: Path,
    debug_vace_checkpoint: Path,
) -> None:
    seconds = pytestconfig.getoption("--fuzz-seconds")
    models = {
        "debug": debug_checkpoint,
        "debug-i2v": debug_i2v_checkpoint,
        "debug-vace": debug_vace_checkpoint,
    }
    keys = Keys.from_lines(key_line("fuzz", KEY))
    with serving_app(tmp_path / "serve", models=models, serve=LIMITS, keys=keys) as app:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{app.url}/openapi.json"]
        command += ["--checks", CHECKS, "--header", f"Authorization: Bearer {KEY}", "--max-time", str(seconds)]
        command += ["--max-examples", "100000", "--continue-on-failure", "--no-color", "--warnings", "off"]
        command += ["--suppress-health-check", "all", "--generation-database", "none"]
        done = subprocess.run(command, cwd=tmp_path, timeout=seconds + 200, check=False)
        assert done.returncode == 0
        assert app.get("/v1/videos?limit=1", Authorization=f"Bearer {KEY}")["object"] == "list"
