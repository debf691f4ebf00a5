"""Progress by server-sent events, cancel, deadlines: over a real socket, while real steps run."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving_app import ServingApp, serving_app
from video_client import VideoClient

STEP_S = 0.1


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, debug_checkpoint: Path) -> Iterator[ServingApp]:
    with serving_app(tmp_path_factory.mktemp("serve"), models={"debug": debug_checkpoint}, step_s=STEP_S) as app:
        yield app


@pytest.fixture
def client(app: ServingApp) -> VideoClient:
    return VideoClient(app.url)


def events(url: str, video_id: str, *, within_s: float = 60) -> Iterator[tuple[str, dict]]:
    """(event, data) as they come, read from the socket as the standard has it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=within_s)
    connection.request("GET", f"/v1/videos/{video_id}/events", headers={"Accept": "text/event-stream"})
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    name, data = "", ""
    while line := answer.readline().decode():
        field, _, value = line.rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = value
        elif not field and name:
            yield name, json.loads(data)
            name = ""
    connection.close()


def test_events_tell_each_state_until_the_end(app: ServingApp, client: VideoClient) -> None:
    video = client.create("ein Zug \r\n 列車", num_inference_steps=30)
    told = list(events(app.url, video["id"]))
    assert told[-1] == ("video.completed", client.get(f"/v1/videos/{video['id']}"))
    assert all(name == f"video.{data['status']}" and data["id"] == video["id"] for name, data in told)
    progress = [data["progress"] for _, data in told]
    assert progress == sorted(progress)
    assert len(set(progress)) >= 4, progress  # 3 s of steps, looked at every half second
    assert list(events(app.url, video["id"])) == told[-1:]


def test_progress_that_is_polled_is_that_of_the_steps(client: VideoClient) -> None:
    video, seen = client.create(num_inference_steps=20), set()
    while (now := client.get(f"/v1/videos/{video['id']}"))["status"] != "completed":
        assert now["status"] in ("queued", "in_progress"), now
        seen.add(now["progress"])
        time.sleep(0.02)
    assert len(seen) >= 5
    assert seen <= {5 * step for step in range(20)} | {99}


def test_a_cancelled_job_stops_within_a_step_and_tells_its_listeners(app: ServingApp, client: VideoClient) -> None:
    video, told = client.create(num_inference_steps=100), []
    listener = threading.Thread(target=lambda: told.extend(events(app.url, video["id"])), daemon=True)
    listener.start()
    while client.get(f"/v1/videos/{video['id']}")["progress"] == 0:
        time.sleep(0.02)
    answer = client.send("POST", f"/v1/videos/{video['id']}/cancel").json()
    assert (answer["status"], answer["error"]["code"]) == ("cancelled", "cancelled_error")
    listener.join(timeout=20)
    assert told[-1][0] == "video.cancelled"
    next_one = client.create()
    assert client.until_ended(next_one["id"], within_s=60)["status"] == "completed"


def test_a_deleted_job_ends_its_events(app: ServingApp, client: VideoClient) -> None:
    video, told = client.create(num_inference_steps=100), []
    listener = threading.Thread(target=lambda: told.extend(events(app.url, video["id"])), daemon=True)
    listener.start()
    while not told:
        time.sleep(0.02)
    client.send("DELETE", f"/v1/videos/{video['id']}")
    listener.join(timeout=20)
    assert told[-1] == ("video.deleted", {"id": video["id"], "object": "video.deleted", "deleted": True})


def test_a_job_that_is_late_fails_by_its_deadline(client: VideoClient) -> None:
    video = client.create(num_inference_steps=100, deadline_s=0.5)
    assert video["deadline_at"] - video["created_at"] in (0, 1)
    ended = client.until_ended(video["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "deadline_error")


def test_jobs_wait_in_the_order_of_their_priority(client: VideoClient) -> None:
    running = [client.create(num_inference_steps=100) for _ in range(2)]
    first, urgent = client.create("later"), client.create("sooner", priority=-5)
    now = {video["prompt"]: video for video in client.get("/v1/videos?limit=2")["data"]}
    assert now["sooner"]["queue_position"] == 0
    assert now["later"]["queue_position"] >= 1
    for video in (*running, first, urgent):
        assert client.send("DELETE", f"/v1/videos/{video['id']}").status_code == 200


def test_a_listener_that_leaves_costs_the_server_nothing(app: ServingApp, client: VideoClient) -> None:
    video = client.create(num_inference_steps=100)
    for _ in range(20):
        host = urlsplit(app.url).netloc
        with socket.create_connection(host.split(":"), timeout=10) as one:
            one.sendall(f"GET /v1/videos/{video['id']}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert one.recv(12) == b"HTTP/1.1 200"
    assert client.get("/healthz") == {"status": "ok"}
    client.send("DELETE", f"/v1/videos/{video['id']}")
