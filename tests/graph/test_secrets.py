"""Keys and passwords that a run needs are in nothing that it writes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from wan_ray.config import RenderConfig

pytestmark = [pytest.mark.ray, pytest.mark.timeout(290)]

KEY, PASSWORD, TOKEN = "key-8d1f0c", "password-77ab31", "token-c03e9d"
DRIVER = """
import sys
import ray
ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=sys.argv[1])
from wan_ray.cli import main
sys.exit(main(["render", sys.argv[2]]))
"""


def test_a_secret_of_the_environment_and_one_of_a_url_are_nowhere_in_output_and_logs(
    debug_config: RenderConfig, tmp_path: Path, write_manifest: Any, s3: Any
) -> None:
    from wan_ray.model.debug import write_debug_checkpoint

    write_debug_checkpoint(tmp_path / "i2v", kind="i2v")
    urls = [f"http://me:{PASSWORD}@127.0.0.1:9/a.png", f"http://127.0.0.1:9/a.png?token={TOKEN}"]
    rows = [{"id": f"r{n}", "task": "i2v", "prompt": "A road", "image": url} for n, url in enumerate(urls)]
    write_manifest(tmp_path / "manifest.parquet", rows)
    model = {"variant": "debug-i2v", "checkpoint": str(tmp_path / "i2v"), "device": "cpu"}
    data = {**debug_config.model_dump(mode="json", exclude_none=True), "model": model, "output": "s3://bucket/out"}
    (tmp_path / "config.yaml").write_text(json.dumps(data))
    logs = Path(tempfile.mkdtemp(prefix="wan", dir="/tmp"))  # paths of sockets may be no longer than 107 characters
    try:
        environment = {**os.environ, **s3.environment(), "FSSPEC_S3_SECRET": KEY}
        command = [sys.executable, "-c", DRIVER, str(logs), str(tmp_path / "config.yaml")]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=280, check=False)
        bucket = fsspec.filesystem("s3").find("bucket/out")
        written = {key: fsspec.filesystem("s3").cat_file(key) for key in bucket}
        written |= {
            str(file): file.read_bytes() for file in logs.rglob("*") if file.is_file() and file.suffix != ".sock"
        }
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    written |= {"stdout": done.stdout, "stderr": done.stderr}
    assert done.returncode == 3, done.stderr.decode()[-3000:]
    records = [json.loads(data) for key, data in written.items() if key.endswith(".json") and "/records/" in key]
    assert sorted(record["inputs"]["image"][0] for record in records) == [
        "http://127.0.0.1:9/a.png?token=***",
        "http://me:***@127.0.0.1:9/a.png",
    ]
    found = {key for key, data in written.items() for secret in (KEY, PASSWORD, TOKEN) if secret.encode() in data}
    assert found == set()
