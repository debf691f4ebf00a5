"""The path on Ray Serve, over HTTP: the same clip as a batch run, and no job lost to whatever is killed."""

import hashlib
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llm_server import LlmServer, llm_server
from observers import Nobody

from wan_ray.config import RenderConfig
from wan_ray.stages.planning import plan_manifest
from wan_ray.storage.blob import Store
from wan_ray.storage.records import RecordStore

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
LONG = 300  # steps of some 20 ms
NUM_PLACES = 80


class Server:
    """One application on the session's cluster."""

    def __init__(self, config: RenderConfig) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{config.serve.port}"
        self.store = Store(config.output or "")

    def start(self) -> None:
        from ray import serve

        from wan_ray.graph.online import APP, make_application
        from wan_ray.serving.keys import Keys

        serve.start(http_options={"host": "127.0.0.1", "port": self.config.serve.port})
        serve.run(make_application(self.config, keys=Keys.from_lines("")), name=APP)

    def call(self, path: str, body: dict[str, object] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def create(self, **fields: object) -> str:
        return self.call("/v1/videos", {"prompt": "a road", "seed": 7, **fields})["id"]

    def seen(self, job_id: str) -> dict[str, Any]:
        """The job, or {} while nobody answers."""
        try:
            return self.call(f"/v1/videos/{job_id}")
        except (OSError, urllib.error.HTTPError):
            return {}

    def running(self, job_id: str) -> Callable[[], bool]:
        return lambda: self.seen(job_id).get("status") == "in_progress" and self.seen(job_id)["progress"] > 5

    def ended(self, *job_ids: str) -> Callable[[], bool]:
        return lambda: all(self.seen(job_id).get("status") in ("completed", "failed") for job_id in job_ids)

    def check_all_well(self, *job_ids: str) -> None:
        """Each job has one record and one whole clip, and there are no others of them."""
        for job_id in job_ids:
            record = RecordStore(self.store).read(job_id)
            assert (record.status, record.error_message) == ("ok", None)
            assert record.clip is not None
            assert hashlib.sha256(self.store.get(record.clip)).hexdigest() == record.sha256
            assert [name for name in self.store.names("clips") if job_id in name] == [
                record.clip.removeprefix("clips/")
            ]
            assert not [name for name in self.store.names("progress") if job_id in name]
        assert not set(self.store.names("pending")) & set(job_ids)


def say(what: str) -> None:
    """For whoever runs these tests with -s to read recovery times."""
    sys.stdout.write(f"{what}\n")


def processes(title: str) -> list[int]:
    """Processes of this session's cluster with that title: children of its raylet."""
    import ray

    raylets = [int(p) for p in _children(os.getpid()) if "raylet" in Path(f"/proc/{p}/cmdline").read_text()]
    assert ray.is_initialized()
    assert len(raylets) == 1
    return [p for p in _children(raylets[0]) if Path(f"/proc/{p}/cmdline").read_text().startswith(title)]


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def language_model() -> Iterator[LlmServer]:
    with llm_server(key=None) as model:
        yield model


@pytest.fixture(scope="module")
def server(
    cluster: None, debug_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, language_model: LlmServer
) -> Iterator[Server]:
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gang = {"ulysses_degree": 2, "save_every_s": 0.3, "timeout_s": 60}
    config = RenderConfig.model_validate(
        {
            "model": {"variant": "debug", "checkpoint": str(debug_checkpoint), "device": "cpu", "gang": gang},
            "output": str(tmp_path_factory.mktemp("served")),
            "defaults": {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 2},
            "stages": {name: {"num_cpus": 0.2} for name in ("extend", "encode", "denoise", "decode", "publish")},
            "extend": {"provider": "openai", "model": "m", "base_url": language_model.openai_url},
            "video": {"threads": 1},
            "serve": {
                "port": port,
                "max_inference_steps": 1000,
                "max_queued": NUM_PLACES,
                "max_queued_per_key": NUM_PLACES,
                "requests_per_minute": 100_000,
            },
        }
    )
    server = Server(config)
    server.start()
    yield server
    serve.shutdown()


def test_a_clip_over_http_is_the_batch_run_s_byte_for_byte(
    server: Server, tmp_path: Path, write_manifest: Callable, eventually: Callable
) -> None:
    from wan_ray.graph.run import render

    job_id = server.create(prompt="雨夜的街道", num_inference_steps=3)
    assert eventually(server.ended(job_id), within_s=120)
    server.check_all_well(job_id)
    with urllib.request.urlopen(f"{server.url}/v1/videos/{job_id}/content", timeout=60) as answer:
        over_http = answer.read()
    row = {"id": "a", "prompt": "雨夜的街道", "seed": 7, "num_inference_steps": 3}
    write_manifest(tmp_path / "manifest.parquet", [row])
    changes = {"manifest": str(tmp_path / "manifest.parquet"), "output": str(tmp_path / "output")}
    batch = server.config.model_copy(update=changes)
    assert render(batch, plan_manifest(batch), observer=Nobody()).ok == 1
    store = Store(str(tmp_path / "output"))
    record = RecordStore(store).read("a")
    assert store.get(record.clip or "") == over_http


def test_a_prompt_is_rewritten_when_its_request_asks_for_it(server: Server, eventually: Callable) -> None:
    job_id = server.create(prompt="A road in fog", extend_prompt=True)
    assert eventually(server.ended(job_id), within_s=120)
    server.check_all_well(job_id)
    record = RecordStore(server.store).read(job_id)
    assert record.prompt_as_run == "A long shot. A road in fog It moves on, slowly and steadily."
    assert record.extension["model"] == "m"


def test_of_200_creates_at_once_all_that_are_accepted_end_and_the_others_are_told_to_wait(
    server: Server, eventually: Callable
) -> None:
    def create(number: int) -> tuple[float, str | int]:
        begun = time.monotonic()
        try:
            found: str | int = server.create(prompt=f"take {number}", task="t2i", num_frames=1, num_inference_steps=1)
        except urllib.error.HTTPError as error:
            assert json.load(error)["error"]["code"] == "queue_full"
            found = error.code
        return time.monotonic() - begun, found

    def retrieve(job_id: str) -> float:
        begun = time.monotonic()
        assert server.call(f"/v1/videos/{job_id}")["id"] == job_id
        return time.monotonic() - begun

    with ThreadPoolExecutor(20) as clients:
        creates = list(clients.map(create, range(200)))
        accepted = [found for _, found in creates if isinstance(found, str)]
        retrieves = list(clients.map(retrieve, accepted * 2))
    assert len(set(accepted)) == len(accepted) >= NUM_PLACES
    assert {found for _, found in creates if not isinstance(found, str)} == {429}
    assert eventually(lambda: not server.store.names("pending"), within_s=400)
    server.check_all_well(*accepted)
    p99 = [sorted(times)[int(len(times) * 0.99)] for times in ([seconds for seconds, _ in creates], retrieves)]
    told = f"{len(accepted)} accepted, {200 - len(accepted)} told to wait"
    say(f"{told}; p99 of create {p99[0]:.2f} s, of retrieve {p99[1]:.2f} s")


@pytest.mark.parametrize(
    "victim", ["ray::Rank", "ray::ServeReplica:wan-ray:ingress", "ray::ServeReplica:wan-ray:queue"]
)
def test_no_job_is_lost_when_one_process_is_killed(server: Server, victim: str, eventually: Callable) -> None:
    jobs = [server.create(num_inference_steps=LONG), server.create()]
    assert eventually(server.running(jobs[0]), within_s=120)
    killed = processes(victim)[-1]
    os.kill(killed, signal.SIGKILL)
    begun = time.monotonic()
    assert eventually(lambda: server.seen(jobs[0]) != {}, within_s=60)
    answered = time.monotonic() - begun
    assert eventually(server.ended(*jobs), within_s=240)
    server.check_all_well(*jobs)
    assert eventually(lambda: killed not in processes("ray::"), within_s=10)
    say(f"{victim}: answered after {answered:.1f} s, all ended after {time.monotonic() - begun:.1f} s")


def test_no_job_is_lost_when_a_whole_gang_is_killed(server: Server, eventually: Callable) -> None:
    jobs = [server.create(num_inference_steps=LONG), server.create()]
    assert eventually(server.running(jobs[0]), within_s=120)
    for pid in processes("ray::Rank") + processes("ray::ServeReplica:wan-ray:denoise-debug"):
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    assert eventually(server.ended(*jobs), within_s=300)
    server.check_all_well(*jobs)
    say(f"gang: all ended after {time.monotonic() - begun:.1f} s")


def test_an_idle_gang_that_lost_a_rank_is_built_anew_before_anybody_asks(server: Server, eventually: Callable) -> None:
    job_id = server.create()
    assert eventually(server.ended(job_id), within_s=120)
    before = processes("ray::Rank")
    os.kill(before[0], signal.SIGKILL)
    assert eventually(
        lambda: len(processes("ray::Rank")) == 2 and not set(before) & set(processes("ray::Rank")), within_s=120
    )


def test_a_cancelled_job_frees_its_gang_at_once(server: Server, eventually: Callable) -> None:
    job_id = server.create(num_inference_steps=1000)
    assert eventually(server.running(job_id), within_s=120)
    step = server.seen(job_id)["progress"]
    server.call(f"/v1/videos/{job_id}/cancel", {})
    assert server.seen(job_id)["status"] == "cancelled"
    after = server.create()
    begun = time.monotonic()
    assert eventually(server.ended(after), within_s=120)
    assert step < 60, "it had almost ended"
    say(f"the next job ended {time.monotonic() - begun:.1f} s after a cancel")


def test_no_job_is_lost_when_all_of_serve_is_killed(server: Server, eventually: Callable) -> None:
    from ray import serve

    jobs = [server.create(num_inference_steps=LONG), server.create(), server.create()]
    assert eventually(server.running(jobs[0]), within_s=120)
    for title in ("ray::ServeController", "ray::ServeReplica", "ray::Rank", "ray::ProxyActor"):
        for pid in processes(title):
            os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    serve.shutdown()
    server.start()
    assert eventually(server.ended(*jobs), within_s=300)
    server.check_all_well(*jobs)
    say(f"all of Serve: all ended {time.monotonic() - begun:.1f} s after")
