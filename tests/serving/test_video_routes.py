"""Create, retrieve, list, delete, content: over a socket, from the real queue and stages."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from PIL import Image
from serving_app import ServingApp, serving_app
from video_client import VideoClient

from wan_ray.errors import QueueDownError
from wan_ray.media.video import read_frames

HARD_PROMPT = 'a cat\r\n日本\tsays \x07 "hi" \\ {x} 🐈'


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path) -> Iterator[ServingApp]:
    serve = {"max_queued": 500, "max_queued_per_key": 400, "requests_per_minute": 100_000, "max_body_bytes": 300_000}
    with serving_app(tmp_path_factory.mktemp("serve"), models={"debug": debug_checkpoint}, serve=serve) as app:
        yield app


@pytest.fixture(scope="module")
def client(app: ServingApp) -> VideoClient:
    return VideoClient(app.url)


@pytest.fixture(scope="module")
def finished(client: VideoClient) -> dict:
    """A video that is not to be deleted."""
    return client.until_ended(client.create(HARD_PROMPT, seed=7, metadata={"team": "鳥"}, labels={"a": "b"})["id"])


def parts(prompt: str, **fields: str) -> list[tuple[str, tuple[None, str]]]:
    return [("prompt", (None, prompt)), *((name, (None, value)) for name, value in fields.items())]


def test_a_video_is_created_rendered_and_downloaded(client: VideoClient, finished: dict) -> None:
    assert finished["status"] == "completed"
    assert (finished["object"], finished["progress"], finished["model"]) == ("video", 100, "debug")
    assert finished["prompt"] == finished["prompt_as_run"] == HARD_PROMPT
    assert finished["created_at"] <= finished["completed_at"] < finished["expires_at"]
    assert all(type(finished[name]) is int for name in ("created_at", "completed_at", "expires_at", "progress"))
    sizes = {name: finished[name] for name in ("width", "height", "num_frames", "fps", "num_inference_steps", "seed")}
    assert sizes == {"width": 64, "height": 48, "num_frames": 5, "fps": 16, "num_inference_steps": 2, "seed": 7}
    assert (finished["metadata"], finished["labels"], finished["error"]) == ({"team": "鳥"}, {"a": "b"}, None)
    clip = client.send("GET", f"/v1/videos/{finished['id']}/content")
    assert clip.headers["content-type"] == "video/mp4"
    assert read_frames(clip.content).shape == (5, 48, 64, 3)


def test_a_form_says_the_same_as_json(client: VideoClient) -> None:
    fields = {"seconds": "0.5", "size": "64x64", "seed": "9", "guidance_scale": "1.5"}
    form = parts(HARD_PROMPT, **fields, **{"metadata[team]": "x", "labels": '{"a": "b"}'})
    by_form = client.send("POST", "/v1/videos", files=form).json()
    by_json = client.create(
        HARD_PROMPT, seconds=0.5, size="64x64", seed=9, guidance_scale=1.5, metadata={"team": "x"}, labels={"a": "b"}
    )
    own = ("id", "created_at", "expires_at", "queue_position", "progress", "status")
    assert {k: v for k, v in by_form.items() if k not in own} == {k: v for k, v in by_json.items() if k not in own}
    assert (by_form["seconds"], by_form["num_frames"], by_form["size"], by_form["height"]) == ("0.5", 9, "64x64", 64)


@pytest.mark.parametrize(
    ("seconds", "fps", "num_frames"), [("5", None, 81), ("4", None, 65), ("8", 8, 65), ("0.01", None, 5), ("2", 25, 49)]
)
def test_seconds_become_the_nearest_number_of_frames_that_the_vae_has(
    client: VideoClient, seconds: str, fps: float | None, num_frames: int
) -> None:
    video = client.create(seconds=seconds, **({} if fps is None else {"fps": fps}))
    assert (video["seconds"], video["num_frames"]) == (seconds, num_frames)
    client.send("POST", f"/v1/videos/{video['id']}/cancel")


@pytest.mark.parametrize("range_header", ["bytes=0-99", "bytes=100-", "bytes=-50", "bytes=7-7", "bytes=5-99999999"])
def test_a_part_of_a_clip_is_served_as_browsers_ask_for_it(
    client: VideoClient, finished: dict, range_header: str
) -> None:
    path = f"/v1/videos/{finished['id']}/content"
    whole = client.send("GET", path).content
    first, _, last = range_header.removeprefix("bytes=").partition("-")
    wanted = whole[-int(last) :] if not first else whole[int(first) : int(last) + 1 if last else None]
    answer = client.send("GET", path, headers={"Range": range_header})
    assert (answer.status_code, answer.content) == (206, wanted)
    start = whole.index(wanted) if first else len(whole) - len(wanted)
    assert answer.headers["content-range"] == f"bytes {start}-{start + len(wanted) - 1}/{len(whole)}"
    assert int(answer.headers["content-length"]) == len(wanted)


def test_ranges_that_mean_nothing_are_ignored_and_those_beyond_the_end_refused(
    client: VideoClient, finished: dict
) -> None:
    path = f"/v1/videos/{finished['id']}/content"
    whole = client.send("GET", path)
    for odd in ("bytes=5-2", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4", "bytes=-"):
        assert client.send("GET", path, headers={"Range": odd}).content == whole.content, odd
    beyond = client.send("GET", path, headers={"Range": f"bytes={len(whole.content)}-"})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["content-range"] == f"bytes */{len(whole.content)}"
    part = {"Range": "bytes=0-1", "If-Range": whole.headers["etag"]}
    assert client.send("GET", path, headers=part).status_code == 206
    assert client.send("GET", path, headers={**part, "If-Range": '"another"'}).content == whole.content


def test_head_tells_of_content_without_sending_it(client: VideoClient, finished: dict) -> None:
    path = f"/v1/videos/{finished['id']}/content"
    head, whole = client.send("HEAD", path), client.send("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges"):
        assert head.headers[name] == whole.headers[name]


def test_pictures_of_a_clip_are_served(client: VideoClient, finished: dict) -> None:
    for variant, kind, size in (("thumbnail", "WEBP", (64, 48)), ("spritesheet", "JPEG", (192, 96))):
        answer = client.send("GET", f"/v1/videos/{finished['id']}/content?variant={variant}")
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert (picture.format, picture.size) == (kind, size)
        assert answer.headers["content-type"] == f"image/{kind.lower()}"


def test_content_that_is_not_there_is_refused(app: ServingApp, client: VideoClient) -> None:
    waiting = client.create(num_inference_steps=100)
    answer = client.send("GET", f"/v1/videos/{waiting['id']}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "video_not_ready")
    cancelled = client.send("POST", f"/v1/videos/{waiting['id']}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("cancelled", "cancelled_error")
    answer = client.send("GET", f"/v1/videos/{waiting['id']}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "video_not_ready")
    assert client.send("POST", f"/v1/videos/{waiting['id']}/cancel").json() == client.get(f"/v1/videos/{waiting['id']}")


def test_what_has_ended_cannot_be_cancelled(client: VideoClient, finished: dict) -> None:
    answer = client.send("POST", f"/v1/videos/{finished['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "video_has_ended")
    assert answer.headers["x-should-retry"] == "false"


def test_a_deleted_video_is_gone_with_all_that_belongs_to_it(app: ServingApp, client: VideoClient) -> None:
    video = client.until_ended(client.create(seed=1, headers={"Idempotency-Key": "goes"})["id"])
    output = Path(str(app.config.output))
    assert [file for file in output.rglob("*") if video["id"] in file.name]
    answer = client.send("DELETE", f"/v1/videos/{video['id']}", headers={"content-type": "application/json"})
    assert answer.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
    assert not [file for file in output.rglob("*") if video["id"] in file.name]
    for path in ("", "/content", "/content?variant=thumbnail"):
        gone = client.send("GET", f"/v1/videos/{video['id']}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "video_not_found")
        assert gone.json()["error"]["param"] == "video_id"
    assert client.create(seed=1, headers={"Idempotency-Key": "goes"})["id"] != video["id"]


def test_pages_of_a_list_stay_in_order_while_jobs_come_in(client: VideoClient) -> None:
    mine = [client.create(f"{n}")["id"] for n in range(5)]
    seen, after = [], mine[0]
    while True:
        page = client.get(f"/v1/videos?limit=2&order=asc&after={after}")
        assert (page["object"], page["first_id"]) == ("list", page["data"][0]["id"])
        seen += [video["id"] for video in page["data"]]
        if len(seen) == 2:
            mine.append(client.create("later")["id"])
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == mine[1:]
    newest = client.get("/v1/videos?limit=3")
    assert [video["id"] for video in newest["data"]] == seen[:-4:-1]
    before = client.get(f"/v1/videos?limit=100&after={newest['last_id']}")
    assert not {video["id"] for video in before["data"]} & set(seen[-3:])
    assert client.get("/v1/videos?after=" + client.get("/v1/videos?order=asc&limit=1")["first_id"])["data"] == []


def test_the_same_key_and_body_make_one_job_however_many_come_at_once(client: VideoClient) -> None:
    def create(_: int) -> str:
        return client.create("once", seed=3, headers={"Idempotency-Key": "K-1"})["id"]

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(create, range(8)))
    assert len(ids) == 1
    status, error = client.refused(json={"prompt": "another"}, headers={"Idempotency-Key": "K-1"})
    assert (status, error["code"]) == (409, "idempotency_key_reused")
    assert client.create("another", headers={"Idempotency-Key": "K-2"})["id"] not in ids
    listed = [video for video in client.get("/v1/videos?limit=100")["data"] if video["prompt"] == "once"]
    assert len(listed) == 1


def test_a_key_whose_first_request_died_before_its_job_was_stored_makes_the_job(
    app: ServingApp, client: VideoClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(job: object) -> None:
        raise RuntimeError("cut short")

    with monkeypatch.context() as cut:
        cut.setattr(app.jobs, "create", dies)
        status, error = client.refused(json={"prompt": "again"}, headers={"Idempotency-Key": "K-dies"})
    assert (status, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert "cut short" not in error["message"]
    video = client.create("again", headers={"Idempotency-Key": "K-dies"})
    assert client.until_ended(video["id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "said"),
    [
        ({}, 400, "missing_required_parameter", "prompt", "describe"),
        ({"prompt": " "}, 400, "invalid_value", "prompt", "has no text"),
        ({"prompt": 5}, 400, "invalid_value", "prompt", "not text"),
        ({"prompt": "x", "num_frame": 5}, 400, "unknown_parameter", "num_frame", "'num_frames'"),
        ({"prompt": "x", "id": "mine"}, 400, "unknown_parameter", "id", "no field"),
        ({"prompt": "x", "num_frames": 6}, 400, "invalid_value", "num_frames", "use 5 or 9"),
        ({"prompt": "x", "num_frames": 997}, 400, "invalid_value", "num_frames", "161"),
        ({"prompt": "x", "num_inference_steps": 101}, 400, "invalid_value", "num_inference_steps", "100"),
        ({"prompt": "x", "seconds": "5", "num_frames": 5}, 400, "invalid_value", "num_frames", "81"),
        ({"prompt": "x", "seconds": "soon"}, 400, "invalid_value", "seconds", "number above 0"),
        ({"prompt": "x", "seconds": "nan"}, 400, "invalid_value", "seconds", "number above 0"),
        ({"prompt": "x", "size": "big"}, 400, "invalid_value", "size", "832x480"),
        ({"prompt": "x", "size": "65x48"}, 400, "invalid_value", "width", "multiple of 16"),
        ({"prompt": "x", "size": "4096x4096"}, 400, "invalid_value", "width", "more than debug's"),
        ({"prompt": "x", "size": "64x48", "width": 80}, 400, "invalid_value", "width", "one of the two"),
        ({"prompt": "x", "model": "sora-2"}, 404, "model_not_found", "model", "debug"),
        ({"prompt": "x", "n": 2}, 400, "invalid_value", "n", "as many requests"),
        ({"prompt": "x", "priority": 1e3}, 400, "invalid_value", "priority", "-100 to 100"),
        ({"prompt": "x", "deadline_s": 0}, 400, "invalid_value", "deadline_s", "above 0"),
        ({"prompt": "x", "webhook_url": "https://example.com"}, 400, "invalid_webhook_url", "webhook_url", "no keys"),
        ({"prompt": "x", "metadata": {"a": 1}}, 400, "invalid_value", "metadata", "map of names"),
        ({"prompt": "x", "metadata": {"a": "b" * 513}}, 400, "invalid_value", "metadata", "512"),
        ({"prompt": "x", "labels": "{"}, 400, "invalid_value", "labels", "not JSON"),
        ({"prompt": "x", "image": "/etc/passwd"}, 400, "invalid_value", "image", "neither a file"),
        ({"prompt": "x", "image": {"file_id": "f"}}, 400, "invalid_value", "image", "no files here"),
        (
            {"prompt": "x", "image": "data:,x", "input_reference": "data:,x"},
            400,
            "invalid_value",
            "input_reference",
            "",
        ),
        ({"prompt": "x", "image": "data:,x"}, 400, "task_not_served", "task", "debug renders t2v"),
        ({"prompt": "x", "vace": ' {"mode":"extend","first":"/etc/passwd"}'}, 400, "invalid_value", "vace.first", ""),
        ({"prompt": "x", "vace": [["mode", "extend"], ["first", "/etc/passwd"]]}, 400, "invalid_value", "vace", ""),
        ({"prompt": "x", "reference_images": ["data:,x"] * 17}, 400, "invalid_value", "reference_images", "16"),
    ],
)
def test_a_body_that_breaks_a_rule_is_refused_by_field(
    client: VideoClient, fields: dict, status: int, code: str, param: str, said: str
) -> None:
    found, error = client.refused(json=fields)
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert said in error["message"]


def test_fields_of_openai_that_say_who_asks_are_let_pass(client: VideoClient) -> None:
    client.create(user="ann", safety_identifier="x", model="Wan2.1-DEBUG", seed=None)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"data": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"data": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"data": b'["prompt"]', "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"data": b'{"prompt":"x","seed":NaN}', "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"data": b'{"prompt":"\\ud800"}', "headers": {"content-type": "application/json"}}, 400, "invalid_json"),
        ({"data": b"prompt=x", "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"data": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_multipart"),
        ({"data": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 400, "invalid_multipart"),
        ({"files": parts("x", **{"refs[][u]": "1"})}, 400, "invalid_field"),
        ({"files": parts("x", **{"a[b]": "1", "a": "2"})}, 400, "invalid_field"),
        ({"files": parts("x", **{"a" + "[b]" * 9: "1"})}, 400, "invalid_field"),
        ({"json": {"prompt": "x", "image": "data:," + "x" * 300_000}}, 413, "request_too_large"),
        ({"files": [*parts("x"), ("image", ("a.png", b"x" * 300_000))]}, 413, "request_too_large"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(client: VideoClient, options: dict, status: int, code: str) -> None:
    found, error = client.refused(**options)
    assert (found, error["code"]) == (status, code)


def test_a_body_that_does_not_say_its_length_is_cut_at_the_limit(client: VideoClient) -> None:
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            sent.append(1)
            yield b"x" * 10_000

    try:
        answer = client.send("POST", "/v1/videos", data=endless(), headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    except requests.ConnectionError:
        pass  # the server closed while we still sent
    assert len(sent) < 5000


def test_unknown_routes_and_methods_answer_as_everything_else(client: VideoClient) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("GET", "/v1/videos?limit=0", 400, "invalid_value"),
        ("GET", "/v1/videos?order=up", 400, "invalid_value"),
        ("GET", "/v1/videos?after=video_1", 404, "video_not_found"),
        ("GET", "/v1/videos/%2e%2e%2fetc", 404, "unknown_url"),
        ("GET", "/v1/videos/..~x/content", 404, "video_not_found"),
    ):
        answer = client.send(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), path
        assert answer.headers["x-request-id"].startswith("req_")


def test_what_is_stored_is_told_while_the_queue_is_being_replaced(
    app: ServingApp, client: VideoClient, finished: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise QueueDownError("its process is gone")

    for name in ("live", "admit", "view"):
        monkeypatch.setattr(app.queue, name, away)
    assert client.get(f"/v1/videos/{finished['id']}") == finished
    assert finished in client.get("/v1/videos?order=asc&limit=100")["data"]
    status, error = client.refused(json={"prompt": "x"})
    assert (status, error["code"], error["type"]) == (503, "queue_unavailable", "server_error")
    health = client.send("GET", "/healthz")
    assert (health.status_code, health.json()) == (503, {"status": "unavailable"})
    assert "wan_ray_queue_up 0" in client.send("GET", "/metrics").text


def test_what_comes_to_nothing_takes_no_place_in_the_queue(tmp_path: Path, debug_i2v_checkpoint: Path) -> None:
    serve = {"max_queued": 1, "max_queued_per_key": 1}
    with serving_app(tmp_path, models={"debug-i2v": debug_i2v_checkpoint}, serve=serve) as app:
        client = VideoClient(app.url)
        for _ in range(3):
            body = {"prompt": "a road", "task": "i2v", "image": "data:image/png;base64,bm8gcGljdHVyZQ=="}
            status, error = client.refused(json=body)
            assert (status, error["param"]) == (400, "image")
