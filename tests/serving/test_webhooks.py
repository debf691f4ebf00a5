"""Webhooks as receivers see them: real servers, and the official client's own verification."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wan_ray.serving import webhooks as webhooks_module
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.jobs import Job, new_job_id
from wan_ray.serving.keys import Keys, key_line, sha256_of
from wan_ray.serving.webhooks import Webhooks, webhook_secret
from wan_ray.storage.records import Record

ALICE, ALICE_NEW, BOB = "wr_" + "a" * 43, "wr_" + "c" * 43, "wr_" + "b" * 43
KEYS = Keys.from_lines(f"{key_line('alice', ALICE)}\n{key_line('alice', ALICE_NEW)}\n{key_line('bob', BOB)}")
HERE = ("127.0.0.0/8",)
# Each line of stdin is a delivery and a secret; prints what the client makes of it.
_UNWRAP = """
import json, sys, warnings
from openai import InvalidWebhookSignatureError, OpenAI
client = OpenAI(api_key="none")
for line in sys.stdin:
    body, headers, secret = json.loads(line)
    try:
        event = client.webhooks.unwrap(body, headers, secret=secret)
        print(json.dumps([event.type, event.data.id, event.id, event.created_at]))
    except InvalidWebhookSignatureError:
        print(json.dumps("invalid"))
"""


@pytest.fixture(scope="module")
def openai_3_54(openai_client: Callable[[str], Path]) -> Path:
    return openai_client("3.54.0")


@dataclass(frozen=True)
class Delivery:
    path: str
    headers: dict[str, str]
    body: str


@contextmanager
def receiver(answer: Callable[[BaseHTTPRequestHandler, int], None]) -> Iterator[tuple[str, list[Delivery]]]:
    """The URL of a server that answers the n-th delivery so, and what it got."""
    got: list[Delivery] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            got.append(Delivery(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            answer(self, len(got))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(*statuses: int, **headers: str) -> Callable[[BaseHTTPRequestHandler, int], None]:
    """The n-th of the statuses, the last one again and again."""

    def answer(handler: BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(statuses[min(number, len(statuses)) - 1])
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def job(url: str, *, owner: str = "alice") -> Job:
    return Job(
        id=new_job_id(1_800_000_000.0), owner=owner, created_at=1_800_000_000.0, request={}, model="m", webhook_url=url
    )


def record(of: Job, error_type: str | None = None) -> Record:
    status = "ok" if error_type is None else "failed"
    return Record(
        name=of.id,
        id=of.id,
        status=status,
        error_type=error_type,
        run_id="r",
        created_at="2027-01-15T08:00:07.250+00:00",
    )


def deliver(of: Job, error_type: str | None = None, *, keys: Keys = KEYS, allowed: tuple[str, ...] = HERE) -> bool:
    return asyncio.run(Webhooks(keys, allowed_hosts=allowed).deliver(of, record(of, error_type)))


def unwrapped(client: Path, deliveries: list[tuple[Delivery, str]]) -> list[object]:
    """What the official client makes of each delivery with the secret beside it."""
    lines = "".join(json.dumps([one.body, one.headers, secret]) + "\n" for one, secret in deliveries)
    done = subprocess.run(
        [sys.executable, "-c", _UNWRAP],
        input=lines,
        env={**os.environ, "PYTHONPATH": str(client)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_official_client_verifies_what_the_key_s_own_secret_signed(openai_3_54: Path) -> None:
    secrets = [webhook_secret(sha256_of(key)) for key in (ALICE, ALICE_NEW, BOB)]
    with receiver(says(200)) as (url, got):
        ends = [(job(f"{url}/a"), None), (job(f"{url}/b"), "RequestError"), (job(f"{url}/c"), "CancelledError")]
        assert all(deliver(of, error_type) for of, error_type in ends)
    assert [one.path for one in got] == ["/a", "/b", "/c"]
    ids = [of.id for of, _ in ends]
    found = unwrapped(openai_3_54, [(one, secret) for secret in secrets for one in got])
    types = ["video.completed", "video.failed", "video.cancelled"]
    event_ids = [one.headers["webhook-id"] for one in got]
    when = 1_800_000_007  # date -ud 2027-01-15T08:00:07 +%s
    expected = [[*one, when] for one in zip(types, ids, event_ids, strict=True)]
    assert found == [*expected, *expected, "invalid", "invalid", "invalid"]


def test_the_official_client_refuses_another_body_and_an_old_delivery(
    openai_3_54: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = webhook_secret(sha256_of(ALICE))
    with receiver(says(200)) as (url, got):
        of = job(url)
        deliver(of)
        old = time.time() - 400
        monkeypatch.setattr(webhooks_module.time, "time", lambda: old)
        deliver(of)
    changed = Delivery(got[0].path, got[0].headers, got[0].body.replace("completed", "failed"))
    assert unwrapped(openai_3_54, [(changed, secret), (got[1], secret)]) == ["invalid", "invalid"]


@pytest.mark.parametrize("status", [200, 204, 400, 401, 404, 410])
def test_an_answer_that_settles_it_is_not_asked_for_again(status: int) -> None:
    with receiver(says(status)) as (url, got):
        assert deliver(job(url))
    assert len(got) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_an_answer_that_may_change_is_asked_for_again_with_the_same_event(status: int) -> None:
    with receiver(says(status, 200)) as (url, got):
        of = job(url)
        assert not deliver(of)
        assert deliver(of)
    assert got[0].body == got[1].body
    assert got[0].headers["webhook-id"] == got[1].headers["webhook-id"]


def test_a_receiver_that_does_not_answer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks_module, "ATTEMPT_TIMEOUT_S", 0.5)
    done = threading.Event()
    with receiver(lambda handler, number: done.wait(30) and None) as (url, got):
        began = time.monotonic()
        assert not deliver(job(url))
        assert time.monotonic() - began < 20
        done.set()
    assert len(got) == 1


def test_a_receiver_that_is_not_there_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert not deliver(job(f"http://127.0.0.1:{port}/"))


def test_a_receiver_whose_name_does_not_resolve_now_is_tried_again() -> None:
    assert not deliver(job("http://no.such.host.invalid/"))


def test_a_redirect_is_not_followed() -> None:
    with receiver(says(200)) as (inner, inner_got), receiver(says(307, Location=f"{inner}/")) as (url, got):
        assert not deliver(job(url))
    assert len(got) == 1 and not inner_got


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_delivery_never_goes_inside_a_network_that_is_not_listed(host: str) -> None:
    with receiver(says(200)) as (url, got):
        port = url.rpartition(":")[2]
        assert deliver(job(f"http://{host}:{port}/"), allowed=())  # nothing is gained by another try
    assert not got


def test_a_key_that_is_gone_signs_nothing() -> None:
    with receiver(says(200)) as (url, got):
        assert deliver(job(url, owner="carol"))
        assert deliver(job(url), keys=Keys())
    assert not got


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://169.254.169.254/", "http://[::1]/", "http://localhost/", "ftp://example.com/", ""],
)
def test_a_webhook_to_an_inner_address_is_refused_when_it_is_asked_for(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(Webhooks(KEYS).check("alice", url))
    assert (caught.value.status, caught.value.code) == (400, "invalid_webhook_url")
    assert caught.value.param == "webhook_url"


def test_a_webhook_needs_a_key_to_sign_it_with() -> None:
    asyncio.run(Webhooks(KEYS).check("alice", "https://8.8.8.8/hook"))
    with pytest.raises(ApiError, match="no keys"):
        asyncio.run(Webhooks(Keys()).check("local", "https://8.8.8.8/hook"))


def test_what_stands_in_a_webhook_s_url_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), receiver(says(500)) as (url, _):
        deliver(job(f"{url}/services/hunter2?token=hunter2"))
        deliver(job(f"{url}/services/hunter2?token=hunter2"), allowed=())
    assert "webhook" in caplog.text and "hunter2" not in caplog.text
