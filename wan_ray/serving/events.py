"""A video's states as server-sent events, each as it comes, until it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from wan_ray.errors import QueueDownError
from wan_ray.serving.backend import Live
from wan_ray.serving.jobs import Job
from wan_ray.serving.openapi import errors
from wan_ray.serving.schemas import DeletedVideo, Video
from wan_ray.serving.service import Service, Serving
from wan_ray.serving.video_routes import OwnJob
from wan_ray.serving.videos import video_of

router = APIRouter(prefix="/v1", tags=["videos"])

_LOOK_S = 0.5
_QUIET_S = 15.0  # what stands between may close a connection on which nothing comes for long
_EXAMPLE = 'event: video.in_progress\ndata: {"id": "video_...", "status": "in_progress", "progress": 42}\n\n'
_EVENTS = {
    200: {
        "description": "Events video.queued, video.in_progress, then video.completed, .failed, .cancelled or .deleted; "
        "data is the Video object.",
        "content": {"text/event-stream": {"example": _EXAMPLE}},
    },
    **errors(400, 404),
}


class _EventStream(StreamingResponse):
    media_type = "text/event-stream"


@router.get(
    "/videos/{video_id}/events", operation_id="video_events", responses=_EVENTS, response_class=StreamingResponse
)
async def video_events(job: OwnJob, service: Serving) -> StreamingResponse:
    """The video now, and again whenever it changes; the stream ends when the video does."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return _EventStream(_states(service, job), headers=headers)


async def _states(service: Service, job: Job) -> AsyncIterator[str]:
    last: Video | None = None
    said = time.monotonic()
    while True:
        now = await _state(service, job, last)
        if now is None:
            yield _event("video.deleted", DeletedVideo(id=job.id))
            return
        if now != last:
            yield _event(f"video.{now.status}", now)
            last, said = now, time.monotonic()
        if now.status not in ("queued", "in_progress"):
            return
        if time.monotonic() - said > _QUIET_S:
            yield ": still there\n\n"
            said = time.monotonic()
        await asyncio.sleep(_LOOK_S)


async def _state(service: Service, job: Job, last: Video | None) -> Video | None:
    """The video now; None once it is deleted. The store is asked only about what the queue does not know."""
    live: Mapping[str, Live] = {}
    with suppress(QueueDownError):
        live = await service.backend.live([job.id])
    if job.id in live:
        return video_of(job, None, live[job.id])
    record = await run_in_threadpool(service.jobs.record, job.id)
    if record is None and not await run_in_threadpool(service.jobs.exists, job):
        return None
    if record is None and last is not None:
        return last  # between two places of the queue
    return video_of(job, record, None)


def _event(name: str, data: Video | DeletedVideo) -> str:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n"
