"""The path on Ray Serve: an application of one queue, ingress replicas, and each model's stages; and serving it."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from wan_ray.config import ModelSection, RenderConfig, Replicas, StageSection, load_config
from wan_ray.costs.check import check_layout
from wan_ray.errors import ConfigError, QueueDownError, StorageError, WanRayError
from wan_ray.graph.cluster import connected
from wan_ray.graph.gang import raised_in
from wan_ray.graph.offline import new_run_id
from wan_ray.graph.placement import LEADER_CPUS, bundles_of, check_fit, check_weights, gang_of, rank_resources
from wan_ray.graph.replicas import QUEUE, Decode, Denoise, Encode, Extend, Handle, Queue
from wan_ray.serving.app import make_app
from wan_ray.serving.backend import Live, QueueView
from wan_ray.serving.jobs import Job, JobStore
from wan_ray.serving.keys import Keys, check_exposure
from wan_ray.storage.blob import Store

logger = logging.getLogger(__name__)

APP = "wan-ray"
KEYS_VARIABLE = "WAN_RAY_API_KEYS"
_GPUS_PER_NODE = 8
_MANY = 10_000  # requests that wait for nothing but the store
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 60.0}


class _QueueBackend:
    """The queue as the routes see it, wherever its process is."""

    def __init__(self, queue: Handle) -> None:
        self._queue = queue

    async def admit(self, owner: str) -> None:
        await self._call("admit", owner)

    async def release(self, owner: str) -> None:
        await self._call("release", owner)

    async def submit(self, job: Job) -> None:
        try:
            await self._call("submit", job)
        except (QueueDownError, StorageError) as error:  # it is stored, and so found later
            logger.warning("submitted later request_id=%s reason=%s", job.id, error)

    async def live(self, job_ids: Sequence[str]) -> Mapping[str, Live]:
        return await self._call("live", job_ids)

    async def cancel(self, job: Job, why: str) -> None:
        await self._call("cancel", job, why)

    async def delete(self, job: Job) -> None:
        await self._call("delete", job)

    async def view(self) -> QueueView:
        return await self._call("view")

    async def _call(self, method: str, *arguments: object) -> Any:
        try:
            return await self._queue.call.remote(method, *arguments)
        except RayTaskError as error:
            if isinstance(cause := raised_in(error), WanRayError):
                raise cause from None
            raise
        except (RayError, RayServeException) as error:
            raise QueueDownError("the queue is being replaced; try again in a moment") from error


@serve.ingress()
class Ingress:
    """Answers HTTP; it holds nothing, so there may be any number."""

    def __init__(self, config: RenderConfig, keys: Keys, queue: Handle) -> None:
        self._config = config
        self._keys = keys
        self._queue = queue

    def __serve_build_asgi_app__(self) -> Any:
        jobs = JobStore(Store(self._config.output or ""))
        return make_app(self._config, jobs=jobs, backend=_QueueBackend(self._queue), keys=self._keys)


def make_application(config: RenderConfig, *, keys: Keys) -> serve.Application:
    """The application that serves the config's models. ConfigError when it must not be exposed, or has no output."""
    check_exposure(config, keys)
    if config.output is None:
        raise ConfigError("no output: jobs and clips must be kept somewhere; set output in the config or give --output")
    config = check_layout(config, {})
    run_id = new_run_id()
    extend = None
    if config.extend is not None:
        extend = _workers(Extend, "extend", config.stages.extend).bind(config.extend, config.output, run_id)
    lanes = {model.variant: _lane(config, model, run_id, extend) for model in config.all_models}
    small = {"ray_actor_options": {"num_cpus": LEADER_CPUS}, "max_ongoing_requests": _MANY, **_HEALTH}
    queue = _deployment(Queue, QUEUE, num_replicas=1, graceful_shutdown_timeout_s=1.0, **small).bind(
        config, lanes, run_id, keys
    )
    ingress = _deployment(Ingress, "ingress", num_replicas=config.serve.ingress_replicas, **small)
    return ingress.bind(config, keys, queue)


def build(args: dict[str, Any]) -> serve.Application:
    """For `serve deploy` and KubeRay: args name a config file, and may hold overrides as a list of key=value.

    Keys are needed always: where Serve listens is not this config's to say. Those beside its file come from the
    environment of the cluster, read here and not in cli.py, for that is where they are: what stands in a Serve config
    file is shown to anyone who sees the dashboard.
    """
    unknown = sorted(args.keys() - {"config", "overrides"})
    if unknown or "config" not in args:
        raise ConfigError(f"args of the application: {unknown or 'no config'}; give config, and overrides if any")
    config = load_config(args["config"], args.get("overrides") or ())
    anywhere = config.serve.model_copy(update={"host": "0.0.0.0"})
    config = config.model_copy(update={"serve": anywhere})
    keys = Keys.open(config.serve.keys_file, more=os.environ.get(KEYS_VARIABLE, ""))
    return make_application(config, keys=keys)


def serve_forever(config: RenderConfig, *, keys: Keys, ready: Callable[[str], None]) -> None:
    """Serve until KeyboardInterrupt; ready(url) is called once requests are answered.

    Pending jobs stay in the output, and the same call goes on with them. ConfigError when the config cannot work, or a
    replica does not start.
    """
    application = make_application(config, keys=keys)
    Store(config.output or "").check()
    with connected(config.ray_address):
        check_fit(config)
        check_weights(config)
        options = HTTPOptions(host=config.serve.host, port=config.serve.port)
        serve.start(http_options=options)
        try:
            serve.run(application, name=APP, route_prefix="/")
            ready(f"http://{config.serve.host}:{config.serve.port}")
            while True:
                time.sleep(3600)
        except (RuntimeError, RayServeException) as error:
            raise ConfigError(f"the server did not start: {error}") from None
        finally:
            serve.delete(APP)


def _lane(config: RenderConfig, model: ModelSection, run_id: str, extend: Any) -> tuple[int, Any, Any, Any, Any]:
    """How many jobs a model may have at once, and the deployments they go through."""
    stages, gang, name = config.stages, gang_of(model), model.variant.replace(".", "-")
    encode = _workers(Encode, f"encode-{name}", stages.encode).bind(model, config.video)
    decode = _workers(Decode, f"decode-{name}", stages.decode).bind(model, config.video, config.output, run_id)
    gpus_per_node = config.hardware.gpus_per_node if config.hardware else _GPUS_PER_NODE
    denoise = _deployment(
        Denoise,
        f"denoise-{name}",
        ray_actor_options={"num_cpus": LEADER_CPUS},
        placement_group_bundles=[{"CPU": LEADER_CPUS}, *bundles_of(gang.degrees, rank_resources(stages.denoise))],
        placement_group_strategy="STRICT_PACK" if gang.degrees.world_size <= gpus_per_node else "PACK",
        max_ongoing_requests=1,
        **_HEALTH,
        **_scale(stages.denoise.replicas, to_zero=config.serve.scale_to_zero),
    ).bind(model, stages, config.output)
    # One more than gangs: while they denoise, the next is encoded and the last one decoded.
    return stages.denoise.replicas.max + 1, extend, encode, denoise, decode


def _workers(cls: type, name: str, section: StageSection) -> Any:
    return _deployment(
        cls,
        name,
        ray_actor_options={"num_cpus": section.num_cpus, "num_gpus": section.num_gpus},
        max_ongoing_requests=2,
        **_HEALTH,
        **_scale(section.replicas, to_zero=False),
    )


def _scale(replicas: Replicas, *, to_zero: bool) -> dict[str, Any]:
    least = 0 if to_zero else replicas.min
    if least == replicas.max:
        return {"num_replicas": least}
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": replicas.max, "target_ongoing_requests": 1.0}}


def _deployment(cls: Any, name: str, **options: Any) -> Any:
    # Ray types a decorated class as a function: hence Any.
    deployed: Any = serve.deployment(cls)
    return deployed.options(name=name, **options)
