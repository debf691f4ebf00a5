"""Requests that mean harm, each on a socket of its own: refused with the right status, and nothing comes of them."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hostile import (
    ALICE,
    BOB,
    MAX_BODY_BYTES,
    TRAP_HOST,
    Answer,
    Scene,
    Sent,
    animated_png,
    create,
    data_url,
    endless,
    form,
    get,
    hostile_scene,
    png,
    raw_create,
    request,
)

from wan_ray.serving import forms

BAD_HTTP = None  # the code of what the HTTP server refuses before the application sees it
JSON = "Content-Type: application/json"
HEAD = f"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ALICE}\r\n{JSON}\r\n"
FORM = "Content-Type: multipart/form-data; boundary=B"
TOO_LARGE = "request_too_large"
UNKNOWN_TYPE = "unsupported_media_type"
DEEP = b'{"a":' * 9_000 + b"1" + b"}" * 9_001
BODY = '{"prompt":"a"}'


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
    debug_checkpoint: Path,
    debug_i2v_checkpoint: Path,
    debug_vace_checkpoint: Path,
) -> Iterator[Scene]:
    models = {
        "debug": debug_checkpoint,
        "debug-i2v": debug_i2v_checkpoint,
        "debug-vace": debug_vace_checkpoint,
    }
    with hostile_scene(tmp_path_factory.mktemp("hostile"), models) as scene:
        yield scene


def framed(*headers: str, body: str = BODY) -> bytes:
    """A create whose length is said by these headers."""
    return (HEAD + "".join(f"{line}\r\n" for line in headers) + "\r\n" + body).encode("latin-1")


def image(value: object) -> bytes:
    return create(task="i2v", image=value)


def redirected(target: str) -> Callable[[Scene], Sent]:
    return lambda scene: image(f"http://{TRAP_HOST}:{scene.trap_port}/?{target.format(port=scene.trap_port)}")


def of_bob(method: str, path: str, **fields: str) -> Callable[[Scene], Sent]:
    """Alice asks for what is Bob's."""
    text = json.dumps({"prompt": "a road", **fields}) if method == "POST" else ""
    return lambda s: request(method, path.format(id=s.bob_video), text.replace("{id}", s.bob_video).encode(), JSON)


def inside(host: str) -> Callable[[Scene], Sent]:
    return lambda scene: image(f"http://{host}:{scene.trap_port}/secret")


def multipart(num_parts: int, name: str = '"a"') -> bytes:
    return form(*[(name, b"x")] * num_parts)


ATTACKS: dict[str, tuple[Sent | Callable[[Scene], Sent], int, str | None]] = {
    # ids
    "id of dots": (get("/v1/videos/%2e%2e"), 404, "video_not_found"),
    "id of slashes": (get("/v1/videos/..%2f..%2f..%2fetc%2fpasswd"), 404, "unknown_url"),
    "id with slashes to content": (get("/v1/videos/..%2f..%2fjobs/content"), 404, "unknown_url"),
    "id of a NUL": (get("/v1/videos/%00"), 404, "video_not_found"),
    "id that ends in a newline": (lambda s: get(f"/v1/videos/{s.alice_video}%0a"), 404, "video_not_found"),
    "id that is no UTF-8": (get("/v1/videos/%ff%fe/content"), 404, "video_not_found"),
    "id of 500 characters": (get("/v1/videos/" + "v" * 500), 400, "invalid_value"),
    "id of another case": (lambda s: get(f"/v1/videos/{s.alice_video.upper()}"), 404, "video_not_found"),
    "page of dots": (get("/page/..%2fkeys.py"), 404, "unknown_url"),
    # other keys' videos, and none
    "retrieve another's": (of_bob("GET", "/v1/videos/{id}"), 404, "video_not_found"),
    "content of another's": (of_bob("GET", "/v1/videos/{id}/content"), 404, "video_not_found"),
    "thumbnail of another's": (of_bob("GET", "/v1/videos/{id}/content?variant=thumbnail"), 404, "video_not_found"),
    "delete another's": (of_bob("DELETE", "/v1/videos/{id}"), 404, "video_not_found"),
    "cancel another's": (of_bob("POST", "/v1/videos/{id}/cancel"), 404, "video_not_found"),
    "events of another's": (of_bob("GET", "/v1/videos/{id}/events"), 404, "video_not_found"),
    "remix another's": (of_bob("POST", "/v1/videos/{id}/remix"), 404, "video_not_found"),
    "edit another's": (of_bob("POST", "/v1/videos/edits", video="{id}"), 404, "video_not_found"),
    "extend another's": (of_bob("POST", "/v1/videos/extensions", video="{id}", seconds="1"), 404, "video_not_found"),
    "list after another's": (of_bob("GET", "/v1/videos?after={id}"), 404, "video_not_found"),
    "owner before the id": (lambda s: get(f"/v1/videos/bob~{s.bob_video}"), 404, "video_not_found"),
    "no key": (get("/v1/videos", key=None), 401, "invalid_api_key"),
    "unknown key": (get("/v1/videos", key="wr_" + "x" * 43), 401, "invalid_api_key"),
    "key in the query": (get(f"/v1/videos?api_key={ALICE}", key=None), 401, "invalid_api_key"),
    "two keys": (get("/v1/videos", f"Authorization: Bearer {BOB}"), 401, "invalid_api_key"),
    # headers and framing
    "two lengths": (framed("Content-Length: 14", "Content-Length: 13"), 400, BAD_HTTP),
    "length and chunks": (framed("Content-Length: 14", "Transfer-Encoding: chunked", body="0\r\n\r\n"), 400, BAD_HTTP),
    "chunks and length": (framed("Transfer-Encoding: chunked", "Content-Length: 14", body="0\r\n\r\n"), 400, BAD_HTTP),
    "unknown encoding": (framed("Transfer-Encoding: xchunked", body="0\r\n\r\n"), 400, BAD_HTTP),
    "chunked not last": (framed("Transfer-Encoding: chunked, identity", body="0\r\n\r\n"), 400, BAD_HTTP),
    "length below zero": (framed("Content-Length: -1"), 400, BAD_HTTP),
    "length of 26 digits": (framed("Content-Length: " + "9" * 26), 400, BAD_HTTP),
    "chunk of 18 digits": (framed("Transfer-Encoding: chunked", body="F" * 18 + "\r\n"), 400, BAD_HTTP),
    "space before the colon": (framed("Content-Length : 14"), 400, BAD_HTTP),
    "folded header": (framed("X-A: b", " c", "Content-Length: 14"), 400, BAD_HTTP),
    "bare CR in a header": (framed("X-A: b\rX-B: c", "Content-Length: 14"), 400, BAD_HTTP),
    "NUL in a header": (framed("X-A: b\0", "Content-Length: 14"), 400, BAD_HTTP),
    "two hosts": (get("/v1/videos", "Host: inner"), 400, "invalid_host"),
    "tunnel": (b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, BAD_HTTP),
    "header of 1 MB": (get("/v1/videos", "X-A: " + "a" * 1_000_000), 431, "headers_too_large"),
    "20000 headers": (get("/v1/videos", *["X-A: a"] * 20_000), 431, "headers_too_large"),
    "address of 1 MB": (get("/v1/videos?after=" + "a" * 1_000_000), 400, BAD_HTTP),
    "idempotency key of 1 MB": (create("Idempotency-Key: " + "k" * 1_000_000), 431, "headers_too_large"),
    "idempotency key of 1 kB": (create("Idempotency-Key: " + "k" * 1000), 400, "invalid_value"),
    # bodies
    "10 GB announced": (
        request("POST", "/v1/videos", b"{", JSON, length=10**10),
        413,
        TOO_LARGE,
    ),
    "10 GB form announced": (
        request("POST", "/v1/videos", b"-", "Content-Type: multipart/form-data; boundary=B", length=10**10),
        413,
        TOO_LARGE,
    ),
    "unpacks to 1 GB": (
        raw_create(gzip.compress(bytes(100_000)), "Content-Encoding: gzip"),
        415,
        UNKNOWN_TYPE,
    ),
    "nested 100000 deep": (raw_create(b'{"prompt":' + b"[" * 90_000), 400, "invalid_json"),
    "nested and closed": (
        raw_create(b'{"prompt":"a","metadata":' + DEEP),
        400,
        "invalid_json",
    ),
    "number of 100000 digits": (raw_create(b'{"prompt":"a","seed":' + b"9" * 100_000 + b"}"), 400, "invalid_json"),
    "NaN": (raw_create(b'{"prompt":"a","guidance_scale":NaN}'), 400, "invalid_json"),
    "infinite number": (raw_create(b'{"prompt":"a","guidance_scale":1e999}'), 400, "invalid_value"),
    "half a surrogate": (raw_create(b'{"prompt":"\\ud800"}'), 400, "invalid_json"),
    "no UTF-8": (raw_create(b'{"prompt":"\xff\xfe"}'), 400, "invalid_json"),
    "a name twice": (raw_create(b'{"prompt":"a","seed":1,"seed":2}'), 400, "invalid_json"),
    "XML": (
        request("POST", "/v1/videos", b"<!DOCTYPE a>", "Content-Type: application/xml"),
        415,
        UNKNOWN_TYPE,
    ),
    "1000 parts": (multipart(1000), 400, "invalid_multipart"),
    "name of a part of 150 kB": (form(('"' + "n" * 150_000 + '"', b"x")), 400, "invalid_multipart"),
    "part nested 20 deep": (form(('"prompt' + "[a]" * 20 + '"', b"x")), 400, "invalid_field"),
    # what a video may ask for
    "prompt of 150 kB": (create(prompt="p" * 150_000), 400, "invalid_value"),
    "10^9 frames": (create(num_frames=10**9 + 1), 400, "invalid_value"),
    "frames beyond the server's": (create(num_frames=165), 400, "invalid_value"),
    "10^9 seconds": (create(seconds="1000000000"), 400, "invalid_value"),
    "10^6 steps": (create(num_inference_steps=10**6), 400, "invalid_value"),
    "seed below zero": (create(seed=-1), 400, "invalid_value"),
    "width of 10^9": (create(width=10**9, height=16), 400, "invalid_value"),
    "size below zero": (create(size="-16x-16"), 400, "invalid_value"),
    "id of its own": (create(id="../../../etc/cron.d/x"), 400, "unknown_parameter"),
    "output path": (create(output_path="/etc/cron.d/x"), 400, "unknown_parameter"),
    "output URL": (create(output_uri="s3://bucket/x"), 400, "unknown_parameter"),
    "owner": (create(owner="bob"), 400, "unknown_parameter"),
    "2000 labels": (create(labels={str(n): "x" for n in range(2000)}), 400, "invalid_value"),
    "priority of 10^18": (create(priority=-(10**18)), 400, "invalid_value"),
    # media
    "path": (image("/etc/passwd"), 400, "invalid_value"),
    "file URL": (image("file:///etc/passwd"), 400, "invalid_value"),
    "bucket": (image("s3://bucket/image.png"), 400, "invalid_value"),
    "gopher": (image("gopher://127.0.0.1/"), 400, "invalid_value"),
    "ftp": (image("ftp://127.0.0.1/a.png"), 400, "invalid_value"),
    "chained URL": (image("simplecache::file:///etc/passwd"), 400, "invalid_value"),
    "path in vace": (create(task="vace", vace='{"mode": "extend", "first": "/etc/passwd"}'), 400, "invalid_value"),
    "data that are no base64": (image("data:image/png;base64,%%%"), 400, "invalid_media"),
    "page as data": (image("data:text/html,<script>alert(1)</script>"), 400, "invalid_media"),
    "PNG of 50000x50000": (image(data_url(png(50_000, 50_000))), 400, "invalid_media"),
    "PNG of 300 frames": (image(data_url(animated_png(300))), 400, "invalid_media"),
    "host that is not allowed": (image("http://example.com/a.png"), 400, "invalid_media_url"),
    "host within a host": (image(f"http://{TRAP_HOST}@127.0.0.1/"), 400, "invalid_media_url"),
    "inner address": (inside("127.0.0.1"), 400, "invalid_media_url"),
    "inner name": (inside("localhost"), 400, "invalid_media_url"),
    "decimal address": (inside("2130706433"), 400, "invalid_media_url"),
    "octal address": (inside("0177.0.0.1"), 400, "invalid_media_url"),
    "mapped address": (inside("[::ffff:127.0.0.1]"), 400, "invalid_media_url"),
    "redirect to this machine": (redirected("http://127.0.0.1:{port}/secret"), 400, "invalid_media_url"),
    "redirect to its name": (redirected("http://localhost:{port}/secret"), 400, "invalid_media_url"),
    "redirect to metadata": (redirected("http://169.254.169.254/latest/"), 400, "invalid_media_url"),
    "redirect to IPv6": (redirected("http://[::1]:{port}/secret"), 400, "invalid_media_url"),
    "redirect to hex": (redirected("http://0x7f.1:{port}/secret"), 400, "invalid_media_url"),
    "redirect to a file": (redirected("file:///etc/passwd"), 400, "invalid_media_url"),
    "webhook inside": (lambda s: create(webhook_url=f"http://127.0.0.1:{s.trap_port}/"), 400, "invalid_webhook_url"),
    "webhook to a name inside": (create(webhook_url="http://localhost/"), 400, "invalid_webhook_url"),
    "webhook to metadata": (create(webhook_url="http://2852039166/latest/"), 400, "invalid_webhook_url"),
    "webhook to a file": (create(webhook_url="file:///etc/passwd"), 400, "invalid_webhook_url"),
}


def sent_by(attack: Sent | Callable[[Scene], Sent], scene: Scene) -> Sent:
    return attack(scene) if callable(attack) else attack


def check_refused(answer: Answer, status: int, code: str | None) -> None:
    assert (answer.status, answer.code) == (status, code), answer.body[:500]
    assert ALICE.encode() not in answer.body and b"Traceback" not in answer.body and b"root:" not in answer.body


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused(name: str, scene: Scene) -> None:
    attack, status, code = ATTACKS[name]
    check_refused(scene.exchange(sent_by(attack, scene)), status, code)
    assert not scene.inner_asked


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=B"])
def test_a_body_without_end_is_refused_as_soon_as_it_is_too_large(kind: str, scene: Scene) -> None:
    process, sent = psutil.Process(), 0
    before = process.memory_info().rss

    def parts() -> Iterator[bytes]:
        nonlocal sent
        start = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' if "form" in kind else b'{"prompt":"'
        yield request("POST", "/v1/videos", b"", f"Content-Type: {kind}", "Transfer-Encoding: chunked")
        for part in endless(start, b"x" * 16_000):
            sent += len(part)
            yield b"%x\r\n%s\r\n" % (len(part), part)

    check_refused(scene.exchange(parts()), 413, TOO_LARGE)
    assert sent < 10_000_000  # what buffers between us took
    assert process.memory_info().rss - before < 50_000_000


def test_a_body_that_stands_still_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "BODY_PAUSE_S", 0.5)
    slow = request("POST", "/v1/videos", b'{"prompt"', JSON, length=100)
    check_refused(scene.exchange(slow), 408, "request_timeout")


def test_a_body_that_trickles_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "BODY_TIMEOUT_S", 1.0)
    done = threading.Event()

    def parts() -> Iterator[bytes]:
        yield request("POST", "/v1/videos", b"{", JSON, length=10_000)
        for _ in range(200):
            if done.wait(0.05):
                return
            yield b" "

    began = time.monotonic()
    check_refused(scene.exchange(parts()), 408, "request_timeout")
    assert time.monotonic() - began < 60


def test_no_key_is_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        for sent in (get("/v1/videos"), get(f"/v1/videos/{ALICE}"), get("/v1/videos", key=BOB + "x"), framed("X: \0")):
            scene.exchange(sent)
    assert caplog.text and ALICE not in caplog.text and BOB not in caplog.text


def test_a_damaged_file_fails_its_video_without_telling_where_it_was_kept(scene: Scene) -> None:
    whole = png(64, 48)
    made = json.loads(scene.exchange(image(data_url(whole[:60] + b"?" * 8 + whole[68:]))).body)
    try:
        until = time.monotonic() + 120
        while (video := json.loads(scene.exchange(get(f"/v1/videos/{made['id']}")).body))["status"] != "failed":
            assert time.monotonic() < until, video
            time.sleep(0.1)
        content = scene.exchange(get(f"/v1/videos/{made['id']}/content"))
    finally:
        scene.exchange(request("DELETE", f"/v1/videos/{made['id']}"))
    assert video["error"]["message"].startswith("image: what was sent is a damaged PNG image")
    assert content.status == 400 and b"what was sent is a damaged PNG image" in content.body


def test_after_all_that_each_has_the_video_it_had_and_no_other(scene: Scene) -> None:
    for key, video in ((ALICE, scene.alice_video), (BOB, scene.bob_video)):
        listed = json.loads(scene.exchange(get("/v1/videos?limit=100", key=key)).body)
        assert [one["id"] for one in listed["data"]] == [video]
    assert len(scene.app.jobs.store.names("jobs")) == 2
    assert not scene.app.jobs.store.names("uploads")
    assert len(ATTACKS) >= 30 and MAX_BODY_BYTES < 10**10
