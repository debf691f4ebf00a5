"""A wish becomes a job: checked as a manifest row is, its media fetched and stored, then promised. In that order."""

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from wan_ray.errors import JobNotFoundError, QueueDownError, RequestError
from wan_ray.request import MEDIA_FIELDS, RenderRequest
from wan_ray.resolved import RESOLVED_FIELDS, ResolvedRequest, seed_from_id
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.backend import Backend
from wan_ray.serving.fields import Wish
from wan_ray.serving.intake import media_bytes
from wan_ray.serving.jobs import Job, created_at, new_job_id, texts_in
from wan_ray.serving.service import Service
from wan_ray.stages.read import parse_and_resolve

_LATER = ("width", "height", "fps")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a wish came from. sha256: of all that the client sent. key: its Idempotency-Key."""

    owner: str
    sha256: str
    key: str | None = None
    remixed_from: str | None = None


async def accept(service: Service, wish: Wish, origin: Origin) -> Job:
    """The stored and submitted job; that of an earlier request with the same key and content, if there was one.

    ApiError 400 for what breaks a rule, 409 for a key that came with other content; QueueFullError before anything is
    stored. Two processes that accept the same key at once write the same job.
    """
    request, resolved = checked(service, wish)
    jobs, job_id = service.jobs, new_job_id(time.time())
    if origin.key is not None:
        job_id = await run_in_threadpool(_reserved, service, origin, origin.key, None) or job_id
        if job := await run_in_threadpool(_found, service, origin.owner, job_id):
            return job
    if wish.webhook_url is not None:
        await service.webhooks.check(origin.owner, wish.webhook_url)
    async with _place(service.backend, origin.owner):
        if origin.key is not None:
            job_id = await run_in_threadpool(_reserved, service, origin, origin.key, job_id) or job_id
            if job := await run_in_threadpool(_found, service, origin.owner, job_id):
                return job
        places = {}
        for marker, source in wish.media.items():
            data = await media_bytes(source, service.config)
            places[marker] = await run_in_threadpool(jobs.put_upload, job_id, marker, data)
        row = _row(request, resolved, places, job_id=job_id)
        job = _job(service, wish, origin, job_id=job_id, model=resolved.variant, row=row)
        await run_in_threadpool(jobs.create, job)
        await service.backend.submit(job)
        return job


@asynccontextmanager
async def _place(backend: Backend, owner: str) -> AsyncIterator[None]:
    """A place among the waiting jobs while the block runs."""
    await backend.admit(owner)
    try:
        yield
    finally:
        with suppress(QueueDownError):  # a new queue knows nothing of it
            await backend.release(owner)


def checked(service: Service, wish: Wish) -> tuple[RenderRequest, ResolvedRequest]:
    """The wish as a manifest row, by the same rules; ApiError 400 in their words."""
    try:
        parsed, resolved = parse_and_resolve(wish.row, service.config, variant=wish.variant)
    except RequestError as error:
        raise as_api_error(error) from None
    _check_bounds(service, resolved)
    _check_sources(service, wish, resolved)
    return parsed.request, resolved


def as_api_error(error: RequestError) -> ApiError:
    """A row's error as an answer; param is the field that it begins with."""
    message = str(error)
    found = re.match(r"(?:column ')?([a-z_]+(?:\.[a-z_0-9]+)*)[=:' ]", message)
    param = found[1] if found and found[1].partition(".")[0] in RenderRequest.model_fields else None
    code = "task_not_served" if message.startswith("task: no model") else "invalid_value"
    return ApiError(400, code, message, param=param)


def _check_bounds(service: Service, resolved: ResolvedRequest) -> None:
    limits = service.config.serve
    for field, value, most in (
        ("num_frames", resolved.num_frames, limits.max_frames),
        ("num_inference_steps", resolved.num_inference_steps, limits.max_inference_steps),
    ):
        if value > most:
            raise ApiError(
                400, "invalid_value", f"{field}: {value} is more than {most}, the most this server takes", param=field
            )


def _check_sources(service: Service, wish: Wish, resolved: ResolvedRequest) -> None:
    """No client names a file of this machine: what is not a marker stands in the config's defaults."""
    of_config = set(texts_in(service.config.defaults))
    for field, sources in resolved.media.items():
        for source in sources:
            if source not in wish.media and source not in of_config:
                raise ApiError(400, "invalid_value", f"{field}: a path says nothing here; send the file", param=field)


def _reserved(service: Service, origin: Origin, key: str, job_id: str | None) -> str | None:
    """The id that stands for the key, of an earlier request or (not None) this; ApiError 409 when that was another."""
    if job_id is None:
        found = service.jobs.reserved(origin.owner, key)
    else:
        found = service.jobs.reserve(origin.owner, key, body_sha256=origin.sha256, job_id=job_id)
    if found is None:
        return None
    if found[0] != origin.sha256:
        raise ApiError(
            409,
            "idempotency_key_reused",
            "this Idempotency-Key came before with another body; use a new key for a new request",
            headers={"x-should-retry": "false"},
        )
    return found[1]


def _found(service: Service, owner: str, job_id: str) -> Job | None:
    try:
        return service.jobs.get(owner, job_id)
    except JobNotFoundError:
        return None


def _row(
    request: RenderRequest, resolved: ResolvedRequest, places: Mapping[str, str], *, job_id: str
) -> dict[str, Any]:
    """The manifest row of a request: sources where they are stored, nothing left to defaults, which may change."""
    row: dict[str, Any] = {**request.model_dump(mode="json", exclude_none=True), "id": job_id}
    # What is 0 is decided by an image or video, once it is read.
    row |= {name: getattr(resolved, name) for name in RESOLVED_FIELDS if name not in _LATER or getattr(resolved, name)}
    row["seed"] = seed_from_id(job_id) if request.seed is None else request.seed
    row = {name: value for name, value in row.items() if value != {} and value is not False}
    holders: list[dict[str, Any]] = [row, row.get("vace", {})]
    for holder in holders:
        for name in (*MEDIA_FIELDS, "first", "last", "reference_masks"):
            if name in holder:
                value = holder[name]
                placed = [places.get(one, one) for one in (value if isinstance(value, list) else [value])]
                holder[name] = placed if isinstance(value, list) else placed[0]
    return row


def _job(service: Service, wish: Wish, origin: Origin, *, job_id: str, row: dict[str, Any], model: str) -> Job:
    """All times follow from the id, so that whoever makes the job of this id makes the same."""
    began = created_at(job_id)
    return Job(
        id=job_id,
        owner=origin.owner,
        created_at=began,
        request=row,
        model=model,
        seconds=wish.seconds,
        size=wish.size,
        priority=wish.priority,
        deadline_at=None if wish.deadline_s is None else began + wish.deadline_s,
        expires_at=began + service.config.serve.keep_days * 86400,
        webhook_url=wish.webhook_url,
        metadata=dict(wish.metadata),
        remixed_from=origin.remixed_from,
        idempotency_key=origin.key,
    )
