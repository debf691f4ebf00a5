"""A server of the routes with the real queue and the real stages of a tiny checkpoint, in threads of this process."""

import asyncio
import dataclasses
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from wan_ray.config import RenderConfig
from wan_ray.errors import RequestError, StageError
from wan_ray.serving.jobs import JobStore
from wan_ray.serving.queue import JobQueue, Lane, Tell
from wan_ray.stages.items import Item, Row
from wan_ray.stages.loader import StageLoader
from wan_ray.stages.pause import Pause
from wan_ray.stages.publish import PublishStage
from wan_ray.storage.blob import Store
from wan_ray.storage.records import Record

SMALL = {"width": 64, "height": 48, "num_frames": 5, "num_inference_steps": 2}


@dataclasses.dataclass(kw_only=True)
class ServingApp:
    """url has no slash at its end; jobs are what it serves; queue runs in the loop of `loop`."""

    url: str
    config: RenderConfig
    jobs: JobStore
    queue: JobQueue
    loop: asyncio.AbstractEventLoop

    def get(self, path: str, **headers: str) -> Any:
        """JSON of a GET."""
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=30) as answer:
            return json.load(answer)


class _Stages:
    """One model's stages, loaded at the first job; a clip at a time, as one gang would."""

    def __init__(self, config: RenderConfig, model: Any, run_id: str, step_s: float) -> None:
        self.loader = StageLoader(model=model, video=config.video)
        self.publish = PublishStage(config.output or "", run_id=run_id)
        self.step_s = step_s
        self.lock = threading.Lock()
        self.stages: tuple[Any, Any, Any] | None = None
        self.queue: JobQueue | None = None

    def render(self, row: Row, token: str) -> Record:
        with self.lock:
            if self.stages is None:
                self.stages = self.loader.encode(), self.loader.denoise(), self.loader.decode()
            encode, denoise, decode = self.stages
            item = Item.from_row(row)
            why: list[str] = []

            def on_step(step: int, num_steps: int) -> None:
                assert self.queue is not None
                reason = self.queue.beat(item.id, token, step, num_steps)
                if reason is not None:
                    why.append(reason)
                time.sleep(self.step_s)

            on_step(0, item.sound.num_inference_steps)
            pause = Pause(should_stop=lambda: why[0] if why else None)
            try:
                item = decode(denoise(encode(item), on_step, pause=pause))
            except (RequestError, StageError) as error:
                item = item.failed("denoise", error)
            return self.publish(item)


def serving_config(
    folder: Path,
    models: Mapping[str, Path],
    *,
    serve: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] = SMALL,
) -> RenderConfig:
    """A config of small clips under folder/output."""
    return RenderConfig.model_validate(
        {
            "models": [
                {"variant": variant, "checkpoint": str(path), "device": "cpu"} for variant, path in models.items()
            ],
            "output": str(folder / "output"),
            "defaults": dict(defaults),
            "video": {"threads": 1, "preset": "ultrafast"},
            "serve": dict(serve or {}),
        }
    )


def serving_queue(config: RenderConfig, *, step_s: float = 0.0, tell: Tell | None = None) -> JobQueue:
    """A queue whose jobs are rendered in this process; step_s is slept after every denoising step."""
    run_id = f"serve-{time.time_ns()}"
    stages = {model.variant: _Stages(config, model, run_id, step_s) for model in config.all_models}

    def lane(one: _Stages) -> Lane:
        async def run(row: Row, token: str) -> Record:
            return await asyncio.to_thread(one.render, row, token)

        return Lane(slots=2, run=run)

    lanes = {variant: lane(one) for variant, one in stages.items()}
    queue = JobQueue(JobStore(Store(str(config.output))), config, lanes, run_id=run_id, grace_s=0.2, tell=tell)
    for one in stages.values():
        one.queue = queue
    return queue


@contextmanager
def serving_app(
    folder: Path,
    *,
    models: Mapping[str, Path],
    serve: Mapping[str, object] | None = None,
    keys: Any = None,
    step_s: float = 0.0,
    tell: Tell | None = None,
    defaults: Mapping[str, object] = SMALL,
) -> Iterator[ServingApp]:
    """Serve these models (checkpoint folder by variant) on a free port. With the same folder again, it is a restart."""
    from wan_ray.serving.app import make_app
    from wan_ray.serving.keys import Keys

    config = serving_config(folder, models, serve=serve, defaults=defaults)
    jobs, queue = JobStore(Store(str(config.output))), serving_queue(config, step_s=step_s, tell=tell)
    app = make_app(config, jobs=jobs, backend=queue, keys=keys or Keys.from_lines(""))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve_all() -> None:
        loops.append(asyncio.get_running_loop())
        await queue.start()
        await server.serve(sockets=[listening])
        await queue.close()

    thread = threading.Thread(target=asyncio.run, args=[serve_all()], name="serving-app", daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        time.sleep(0.02)
    port = listening.getsockname()[1]
    try:
        yield ServingApp(url=f"http://127.0.0.1:{port}", config=config, jobs=jobs, queue=queue, loop=loops[0])
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listening.close()
