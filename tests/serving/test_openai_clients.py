"""The official client, in three generations, against a running server: each in a process with packages of its own."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_app import serving_app
from video_client import png

from wan_ray.serving.keys import Keys, key_line, new_key

VERSIONS = ("2.2.0", "2.54.0", "3.54.0")
CONTRACT = Path(__file__).parents[1] / "support" / "openai_contract.py"
NUM_CHECKS = 26


@pytest.fixture(scope="module")
def image_url() -> Iterator[str]:
    """Where a picture is served."""

    class Picture(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(png())))
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Picture) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.png"
        server.shutdown()


@pytest.fixture(scope="module")
def key_of() -> dict[str, str]:
    """A key for each generation, which thus does not see what the others make."""
    return {version: new_key() for version in VERSIONS}


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory,
    key_of: dict[str, str],
    debug_checkpoint: Path,
    debug_i2v_checkpoint: Path,
    debug_vace_checkpoint: Path,
) -> Iterator[str]:
    models = {"debug": debug_checkpoint, "debug-i2v": debug_i2v_checkpoint, "debug-vace": debug_vace_checkpoint}
    serve = {"max_queued_per_key": 30, "allowed_media_hosts": ["127.0.0.1"]}
    keys = Keys.from_lines("\n".join(key_line("v" + version.replace(".", "-"), key) for version, key in key_of.items()))
    folder = tmp_path_factory.mktemp("serve")
    with serving_app(folder, models=models, serve=serve, keys=keys, step_s=0.05) as app:
        yield app.url


def installed(version: str, cache: Path) -> Path:
    """The folder of that client and what it needs, made once."""
    folder = cache / f"openai-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        install = ["install", "--quiet", "--no-input", "--target", str(unfinished), f"openai=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=240)
        unfinished.rename(folder)
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_each_generation_of_the_client_finds_the_contract_kept(
    version: str, url: str, key_of: dict[str, str], image_url: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    packages = installed(version, pytestconfig.cache.mkdir("openai_clients"))
    picture = tmp_path / "im.png"
    picture.write_bytes(png())
    data_url = "data:image/png;base64," + base64.b64encode(png()).decode()
    done = subprocess.run(
        [sys.executable, str(CONTRACT), url, key_of[version], str(picture), data_url, image_url],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == version
    assert not found["failed"], "\n".join(found["failed"].values())
    assert len(found["held"]) == NUM_CHECKS
