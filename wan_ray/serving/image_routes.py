"""/v1/images/generations: stills by task t2i, in one answer. Each is a job as a video is, and can be had as one."""

import asyncio
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from wan_ray.errors import QueueFullError
from wan_ray.serving.accept import Origin, accept, checked
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.content import finished
from wan_ray.serving.fields import read_wish, refuse, whole
from wan_ray.serving.forms import Field, read_form
from wan_ray.serving.jobs import Job
from wan_ray.serving.openapi import errors, image_body
from wan_ray.serving.schemas import Image, ImageAnswer, Video
from wan_ray.serving.service import Service, Serving
from wan_ray.serving.video_routes import Asking
from wan_ray.serving.videos import views
from wan_ray.wording import shown

router = APIRouter(prefix="/v1", tags=["images"])

_MAX_IMAGES = 4
_LOOK_S = 0.25
# Of OpenAI's: how its models draw, or what is one way here.
_WITHOUT_MEANING = ("quality", "style", "background", "moderation", "output_compression", "partial_images")
_STATUS_OF = {"request_error": 400, "cancelled_error": 409, "deadline_error": 408}


@router.post(
    "/images/generations",
    operation_id="create_image",
    openapi_extra=image_body(),
    responses=errors(400, 404, 408, 409, 413, 415),
)
async def create_image(asked: Asking, service: Serving) -> ImageAnswer:
    """Stills of a prompt, once they are rendered; whoever does not wait for the answer ends them."""
    form = await read_form(asked.request, max_bytes=service.config.serve.max_body_bytes)
    fields = {name: value for name, value in form.fields.items() if value is not None and name not in _WITHOUT_MEANING}
    wanted = fields.pop("response_format", "b64_json")
    if wanted not in ("b64_json", "url"):
        refuse("response_format", f"{shown(wanted)} is not known; use 'b64_json' or 'url'")
    if fields.pop("output_format", "png") != "png":
        refuse("output_format", "images are written as 'png'; ask for that, or leave it out")
    if str(fields.pop("stream", False)).lower() != "false":
        refuse("stream", "an image comes whole; leave it out, or listen to /v1/videos/{id}/events")
    if fields.get("size") == "auto":
        del fields["size"]
    number = whole("n", fields.pop("n", 1), 1, _MAX_IMAGES)
    jobs = await _accepted(service, fields, asked.origin(form), number)
    videos = await _ended(asked.request, service, jobs)
    data = []
    for job in jobs:
        url = str(asked.request.url_for("video_content", video_id=job.id))
        data.append(Image(id=job.id, url=url) if wanted == "url" else await _image(service, job))
    return ImageAnswer(created=min(video.created_at for video in videos), data=data)


async def _accepted(service: Service, fields: Mapping[str, Field], origin: Origin, number: int) -> list[Job]:
    """Jobs of as many stills, all or none; a seed that is given is the first one's."""
    first = read_wish({**fields, "task": "t2i"}, service.config)
    seed = checked(service, first)[0].seed
    jobs: list[Job] = []
    for n in range(number):
        wish = first if seed is None else replace(first, row={**first.row, "seed": seed + n})
        key = origin.key if origin.key is None or n == 0 else f"{origin.key}#{n}"
        try:
            jobs.append(await accept(service, wish, replace(origin, key=key)))
        except (ApiError, QueueFullError):
            await _cancel(service, jobs, "the other images of its request were refused")
            raise
    return jobs


async def _ended(request: Request, service: Service, jobs: Sequence[Job]) -> list[Video]:
    """The jobs once all have ended; ApiError for the first that failed, which ends the others."""
    while True:
        now = await views(service, list(jobs))
        for video in now:
            if video.error is not None:
                await _cancel(service, jobs, "another image of its request failed")
                status = _STATUS_OF.get(video.error.code, 500)
                headers = {"x-should-retry": "false"}
                raise ApiError(status, video.error.code, f"image {video.id}: {video.error.message}", headers=headers)
        if all(video.status == "completed" for video in now):
            return now
        if await request.is_disconnected():
            await _cancel(service, jobs, "nobody waited for it")
            raise ClientDisconnect
        await asyncio.sleep(_LOOK_S)


async def _cancel(service: Service, jobs: Sequence[Job], why: str) -> None:
    for job in jobs:
        await service.backend.cancel(job, why)


async def _image(service: Service, job: Job) -> Image:
    record = await finished(service.jobs, job)
    data = await run_in_threadpool(service.jobs.clip, record)
    return Image(id=job.id, b64_json=b64encode(data).decode())
