"""Remix, edits, extensions, stills, and what is said about the server: with models for each task."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image
from serving_app import ServingApp, serving_app
from video_client import VideoClient, png

from wan_ray.media.video import read_frames
from wan_ray.serving.keys import Keys, key_line, new_key

KEYS = {"ann": new_key(), "bob": new_key()}


@pytest.fixture(scope="module")
def app(
    tmp_path_factory: pytest.TempPathFactory,
    debug_checkpoint: Path,
    debug_i2v_checkpoint: Path,
    debug_vace_checkpoint: Path,
) -> Iterator[ServingApp]:
    models = {"debug": debug_checkpoint, "debug-i2v": debug_i2v_checkpoint, "debug-vace": debug_vace_checkpoint}
    keys = Keys.from_lines("\n".join(key_line(owner, key) for owner, key in KEYS.items()))
    with serving_app(tmp_path_factory.mktemp("serve"), models=models, keys=keys) as app:
        yield app


@pytest.fixture(scope="module")
def client(app: ServingApp) -> VideoClient:
    return VideoClient(app.url, KEYS["ann"])


@pytest.fixture(scope="module")
def source(client: VideoClient) -> dict:
    return client.until_ended(client.create("a source", num_frames=21, seed=3)["id"])


def test_one_key_sees_nothing_of_anothers(app: ServingApp, client: VideoClient, source: dict) -> None:
    bob = VideoClient(app.url, KEYS["bob"])
    assert bob.get("/v1/videos")["data"] == []
    for method, path in (
        ("GET", ""),
        ("GET", "/content"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        answer = bob.send(method, f"/v1/videos/{source['id']}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "video_not_found")
    for path in (f"{source['id']}/remix", "edits", "extensions"):
        body = {"prompt": "mine", "seconds": "1", "video": {"id": source["id"]}}
        body = {"prompt": "mine"} if path.endswith("remix") else body
        status, error = bob.refused(f"/v1/videos/{path}", json=body)
        assert (status, error["code"]) == (404, "video_not_found"), path
    assert bob.refused("/v1/videos?", json={"prompt": "x"}, headers={"Authorization": "Bearer no"})[0] == 401


def test_a_remix_repeats_a_request_with_its_image_even_when_the_first_is_gone(client: VideoClient) -> None:
    form = [("prompt", (None, "she waves")), ("seed", (None, "5")), ("input_reference", ("a.png", png()))]
    first = client.send("POST", "/v1/videos", files=form).json()
    assert first["task"] == "i2v"
    remix = client.send(
        "POST", f"/v1/videos/{first['id']}/remix", json={"prompt": "she sings", "seconds": "0.6"}
    ).json()
    client.send("DELETE", f"/v1/videos/{first['id']}")
    assert (remix["remixed_from_video_id"], remix["prompt"], remix["seed"]) == (first["id"], "she sings", 5)
    assert (remix["task"], remix["num_frames"], remix["seconds"]) == ("i2v", 9, "0.6")
    ended = client.until_ended(remix["id"])
    assert ended["status"] == "completed", ended


def test_an_edit_keeps_the_shape_of_its_source(client: VideoClient, source: dict) -> None:
    by_id = client.send("POST", "/v1/videos/edits", json={"prompt": "snow", "video": {"id": source["id"]}}).json()
    clip = client.send("GET", f"/v1/videos/{source['id']}/content").content
    form = [("prompt", (None, "snow")), ("video", ("a.mp4", clip, "video/mp4")), ("size", (None, "80x48"))]
    by_file = client.send("POST", "/v1/videos/edits", files=form).json()
    for video, size in ((by_id, (64, 48)), (by_file, (80, 48))):
        assert (video["task"], video["num_frames"], video["fps"]) == ("vace", 21, 16)
        ended = client.until_ended(video["id"])
        assert (ended["status"], ended["width"], ended["height"]) == ("completed", *size), ended
    assert (by_id["remixed_from_video_id"], by_file["remixed_from_video_id"]) == (source["id"], None)


def test_an_edit_with_a_mask_is_made_where_the_mask_is(app: ServingApp, client: VideoClient, source: dict) -> None:
    form = [("prompt", (None, "a dog")), ("video[id]", (None, source["id"])), ("mask_video", ("m.png", png()))]
    video = client.send("POST", "/v1/videos/edits", files=form).json()
    assert client.until_ended(video["id"])["status"] == "completed"
    assert app.jobs.records.read(video["id"]).vace["mode"] == "inpaint"


def test_an_extension_is_the_last_second_and_what_is_new(app: ServingApp, client: VideoClient, source: dict) -> None:
    body = {"prompt": "on", "seconds": "1", "video": source["id"]}
    video = client.send("POST", "/v1/videos/extensions", json=body).json()
    assert (video["num_frames"], video["seconds"], video["size"]) == (33, "1", "64x48")
    ended = client.until_ended(video["id"])
    assert ended["status"] == "completed", ended
    clip = client.send("GET", f"/v1/videos/{video['id']}/content").content
    assert read_frames(clip).shape == (33, 48, 64, 3)
    record = app.jobs.records.read(video["id"])
    assert (record.vace["mode"], record.vace["num_first"]) == ("extend", 17)
    assert record.inputs["kept_clips"]["first"]["frame_indices"] == [*range(4, 21)]


def test_what_a_video_is_made_of_must_be_there(client: VideoClient) -> None:
    for path, body, status, code in (
        ("edits", {"prompt": "x"}, 400, "missing_required_parameter"),
        ("edits", {"prompt": "x", "video": "/etc/passwd"}, 400, "invalid_value"),
        ("edits", {"prompt": "x", "video": "data:,nothing"}, 400, "invalid_media"),
        ("edits", {"prompt": "x", "video": "https://example.com/a.mp4"}, 400, "invalid_media_url"),
        ("extensions", {"prompt": "x", "video": "data:,nothing", "seconds": "1"}, 400, "invalid_media"),
        ("characters", {"name": "x"}, 404, "characters_not_supported"),
        ("video_0/remix", {"prompt": "x"}, 404, "video_not_found"),
    ):
        found, error = client.refused(f"/v1/videos/{path}", json=body)
        assert (found, error["code"]) == (status, code), (path, body)
    running = client.create(num_inference_steps=100)
    status, error = client.refused("/v1/videos/edits", json={"prompt": "x", "video": running["id"]})
    assert (status, error["code"]) == (400, "video_not_ready")
    client.send("DELETE", f"/v1/videos/{running['id']}")


def test_pictures_that_are_none_are_refused_at_once(client: VideoClient) -> None:
    for image in ("data:,text", "data:image/png;base64," + base64.b64encode(png()[:40]).decode()):
        status, error = client.refused(json={"prompt": "x", "image": image})
        assert (status, error["code"], error["param"]) == (400, "invalid_media", "image")
    form = [("prompt", (None, "x")), ("image", ("a.png", b""))]
    assert client.refused(files=form)[1]["code"] == "invalid_media"


def test_a_named_model_renders_what_another_would_render_too(tmp_path: Path, debug_checkpoint: Path) -> None:
    models = {"t2v-1.3B": debug_checkpoint, "debug": debug_checkpoint}
    with serving_app(tmp_path, models=models) as app:
        client = VideoClient(app.url)
        assert client.create()["model"] == "t2v-1.3B"
        named = client.create(model="Wan2.1-Debug")
        assert named["model"] == "debug"
        assert client.until_ended(named["id"])["status"] == "completed"
        assert app.jobs.records.read(named["id"]).variant == "debug"


def test_stills_come_in_one_answer(client: VideoClient) -> None:
    body = {"prompt": "a red cube", "size": "64x64", "n": 2, "seed": 4, "quality": "high"}
    answer = client.send("POST", "/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    pictures = [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
    assert len({*pictures}) == 2
    for data in pictures:
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64))
    seeds = [client.get(f"/v1/videos/{image['id']}")["seed"] for image in answer.json()["data"]]
    assert seeds == [4, 5]
    url = client.send("POST", "/v1/images/generations", json={**body, "n": 1, "response_format": "url"}).json()
    place = url["data"][0]["url"].removeprefix(client.url)
    assert client.send("GET", place).headers["content-type"] == "image/png"
    for wrong in ({"n": 5}, {"response_format": "gif"}, {"output_format": "webp"}, {"stream": True}, {"num_frames": 5}):
        assert client.refused("/v1/images/generations", json={"prompt": "x", **wrong})[0] == 400, wrong


def test_a_still_that_nobody_waits_for_is_not_rendered(app: ServingApp, client: VideoClient) -> None:
    body = {"prompt": "left alone", "size": "512x512", "num_inference_steps": 100}
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{app.url}/v1/images/generations", json=body, headers={"Authorization": f"Bearer {client.key}"}, timeout=2
        )
    [video] = [one for one in client.get("/v1/videos?limit=5")["data"] if one["prompt"] == "left alone"]
    assert client.until_ended(video["id"])["status"] == "cancelled"


def test_the_server_tells_its_models_its_health_and_its_numbers(app: ServingApp, client: VideoClient) -> None:
    models = {model["id"]: model for model in client.get("/v1/models")["data"]}
    assert list(models) == ["debug", "debug-i2v", "debug-vace"]
    assert list(models["debug"]["tasks"]) == ["t2v", "t2i"]
    assert models["debug"]["tasks"]["t2v"]["num_inference_steps"] == 2
    assert client.get("/v1/models/wan2.1-DEBUG-I2V") == models["debug-i2v"]
    assert client.send("GET", "/v1/models/sora").json()["error"]["code"] == "model_not_found"
    assert requests.get(f"{app.url}/v1/models", timeout=10).status_code == 401
    assert requests.get(f"{app.url}/healthz", timeout=10).json() == {"status": "ok"}
    text = requests.get(f"{app.url}/metrics", timeout=10)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in text.text.splitlines() if not line.startswith("#"))
    assert (lines["wan_ray_queue_up"], lines["wan_ray_job_slots"]) == ("1", "6")
    assert int(lines['wan_ray_jobs_ended_total{outcome="ok"}']) >= 1
    assert int(lines['wan_ray_http_answers_total{method="GET",route="/v1/models",status="401"}']) == 1
    far = requests.get(f"{app.url}/metrics", headers={"X-Forwarded-For": "8.8.8.8"}, timeout=10)
    assert (far.status_code, far.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_page_and_the_docs_need_no_key(app: ServingApp) -> None:
    for path in ("/", "/page/app.js", "/docs", "/openapi.json"):
        assert requests.get(app.url + path, timeout=10).status_code == 200, path
