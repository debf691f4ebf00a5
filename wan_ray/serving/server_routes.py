"""About the server: its models, whether it works, and numbers for Prometheus."""

import asyncio
import ipaddress
from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from wan_ray.errors import QueueDownError
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.backend import QueueView
from wan_ray.serving.fields import variant_named
from wan_ray.serving.openapi import errors
from wan_ray.serving.page import options
from wan_ray.serving.schemas import Health, Model, ModelPage
from wan_ray.serving.service import Owner, Service, Serving, authorization_of
from wan_ray.serving.traffic import Traffic

router = APIRouter(tags=["server"])

_RELEASED = 1740441600  # 2025-02-25, when the weights of Wan2.1 came out
_PATIENCE_S = 5.0


@router.get("/v1/models", operation_id="list_models", responses=errors())
async def list_models(owner: Owner, service: Serving) -> ModelPage:
    """What this server renders with."""
    return ModelPage(data=_models(service))


@router.get("/v1/models/{model}", operation_id="retrieve_model", responses=errors(404))
async def retrieve_model(model: str, owner: Owner, service: Serving) -> Model:
    """One of them, by its name."""
    variant = variant_named(model, service.config)
    found = [one for one in _models(service) if variant is not None and one.id == variant.name]
    if not found:
        raise ApiError(
            404, "model_not_found", f"there is no model {model[:80]!r}; /v1/models lists them", param="model"
        )
    return found[0]


@router.get("/healthz", operation_id="health", responses={503: {"model": Health, "description": "The queue is away."}})
async def healthz(response: Response, service: Serving) -> Health:
    """Whether jobs are taken on; needs no key."""
    if await _queue_view(service) is None:
        response.status_code = 503
        return Health(status="unavailable")
    return Health(status="ok")


_METRICS = {200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse, responses=_METRICS | errors())
async def metrics(request: Request, service: Serving) -> Response:
    """Numbers of the queue, and of this process's answers; from this machine, or with a key."""
    if not _from_here(request):
        service.keys.owner_of(authorization_of(request))
    lines = [*_queue_lines(await _queue_view(service)), *_traffic_lines(service.traffic)]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _models(service: Service) -> list[Model]:
    offers = options(service.config)["offers"]
    return [
        Model(
            id=name,
            created=_RELEASED,
            owned_by="wan-ai",
            tasks={offer["task"]: offer["defaults"] for offer in offers if offer["model"] == name},
            sizes=next((offer["sizes"] for offer in offers if offer["model"] == name), []),
        )
        for name in (section.variant for section in service.config.all_models)
    ]


async def _queue_view(service: Service) -> QueueView | None:
    """None when the queue does not say in time."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await service.backend.view()
    except (QueueDownError, TimeoutError):
        return None


def _from_here(request: Request) -> bool:
    """Whether a process of this machine asks for itself, and not a proxy for another one."""
    if {"forwarded", "x-forwarded-for", "x-real-ip"} & set(request.headers):
        return False
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _queue_lines(view: QueueView | None) -> Iterator[str]:
    yield from _metric("wan_ray_queue_up", "gauge", {"": int(view is not None)})
    if view is not None:
        yield from _metric("wan_ray_jobs_queued", "gauge", {"": view.queued})
        yield from _metric("wan_ray_jobs_running", "gauge", {"": view.running})
        yield from _metric("wan_ray_job_slots", "gauge", {"": view.slots})
        ended = {f'{{outcome="{outcome}"}}': count for outcome, count in sorted(view.ended.items())}
        yield from _metric("wan_ray_jobs_ended_total", "counter", ended)


def _traffic_lines(traffic: Traffic) -> Iterator[str]:
    labels = {key: '{{method="{}",route="{}",status="{}"}}'.format(*key) for key in sorted(traffic.answers)}
    answers = {labels[key]: traffic.answers[key] for key in labels}
    seconds = {labels[key]: round(traffic.seconds[key], 6) for key in labels}
    yield from _metric("wan_ray_http_answers_total", "counter", answers)
    yield from _metric("wan_ray_http_seconds_total", "counter", seconds)


def _metric(name: str, kind: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield from (f"{name}{labels} {value}" for labels, value in values.items())
