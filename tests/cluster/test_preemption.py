"""The watcher of spot machines, against metadata servers that answer as the clouds' do."""

import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

WATCHER = Path(__file__).parents[2] / "cluster" / "watch_preemption.py"
Serve = Callable[[], tuple[str, threading.Event, list[str]]]


class Metadata(BaseHTTPRequestHandler):
    """EC2 wants a token and answers 404 until there is a notice; Compute Engine wants its header, and answers FALSE."""

    notice: threading.Event
    asked: list[str]

    def do_PUT(self) -> None:
        self.answer(200, "token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else "")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        there = self.notice.is_set()
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "token":
                self.answer(401, "")
            else:
                self.answer(*(200, '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}') if there else (404, ""))
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self.answer(200, "TRUE" if there else "FALSE")
        else:
            self.answer(403, "")

    def answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def metadata() -> Iterator[Serve]:
    """Starts a metadata server: its URL, the event that sets the notice, and what was asked."""
    servers = []

    def start() -> tuple[str, threading.Event, list[str]]:
        notice, asked = threading.Event(), []
        handler = type("Handler", (Metadata,), {"notice": notice, "asked": asked})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", notice, asked

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(("cloud", "left_s"), [("aws", "120"), ("gcp", "30")])
def test_the_node_is_drained_when_and_only_when_there_is_a_notice(
    cloud: str, left_s: str, metadata: Serve, tmp_path: Path
) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nexit 7\n')
    ray.chmod(0o755)
    url, notice, asked = metadata()
    command = [sys.executable, str(WATCHER), cloud, "--address", "head:6379", "--metadata", url]
    watcher = Popen(command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, stderr=PIPE, text=True)
    try:
        while len(asked) < 2 and watcher.poll() is None:
            threading.Event().wait(0.05)
        assert watcher.poll() is None and not (tmp_path / "said").exists()
        notice.set()
        assert watcher.wait(30) == 7
    finally:
        watcher.kill()
    said = (tmp_path / "said").read_text()
    assert said.startswith("drain-node --address head:6379 --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    assert said.endswith(f"--deadline-remaining-seconds {left_s}\n")
    assert watcher.stderr is not None and watcher.stderr.read() == ""


def test_a_metadata_server_that_does_not_answer_is_no_notice(metadata: Serve, tmp_path: Path) -> None:
    command = [sys.executable, str(WATCHER), "aws", "--address", "head:6379", "--metadata", "http://127.0.0.1:9"]
    watcher = Popen(command, env={"PATH": str(tmp_path)}, stderr=PIPE, text=True)
    try:
        threading.Event().wait(3)
        assert watcher.poll() is None
    finally:
        watcher.kill()


def test_ray_has_the_command_and_the_reason_that_the_watcher_gives() -> None:
    from ray.core.generated import autoscaler_pb2
    from ray.scripts.scripts import drain_node

    assert autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") > 0
    flags = {flag for option in drain_node.params for flag in option.opts}
    assert {"--address", "--reason", "--reason-message", "--deadline-remaining-seconds"} <= flags
