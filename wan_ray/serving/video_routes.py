"""/v1/videos: create, retrieve, list, delete, cancel, content."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from wan_ray.serving.accept import Origin, accept
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.content import CLIP_TYPES, CONTENT_TYPES, Variant, content
from wan_ray.serving.fields import Wish, read_wish
from wan_ray.serving.forms import Form, read_form
from wan_ray.serving.jobs import Job, Order
from wan_ray.serving.openapi import body_of, errors
from wan_ray.serving.schemas import DeletedVideo, Video, VideoPage
from wan_ray.serving.service import Owner, Service, Serving
from wan_ray.serving.videos import page_view, poll_headers, view

router = APIRouter(prefix="/v1", tags=["videos"])

VideoId = Annotated[str, Path(description="As create answered it.", max_length=200)]


async def _job(video_id: VideoId, owner: Owner, service: Serving) -> Job:
    return await run_in_threadpool(service.jobs.get, owner, video_id)


OwnJob = Annotated[Job, Depends(_job)]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that makes jobs: whose, and the key under which it may be sent again."""

    request: Request
    owner: str
    key: str | None

    def origin(self, form: Form, *, remixed_from: str | None = None) -> Origin:
        """Where its wishes come from; the same body at another path is another request."""
        sha256 = hashlib.sha256(f"{self.request.url.path} {form.sha256}".encode()).hexdigest()
        return Origin(owner=self.owner, sha256=sha256, key=self.key, remixed_from=remixed_from)


def _asked(
    request: Request,
    owner: Owner,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and body make one job, as long as it is kept."),
    ] = None,
) -> Asked:
    return Asked(request=request, owner=owner, key=idempotency_key)


Asking = Annotated[Asked, Depends(_asked)]


async def accepted(response: Response, service: Service, wish: Wish, origin: Origin) -> Video:
    """The video of a wish, and in the response's headers when to ask for it."""
    video = await view(service, await accept(service, wish, origin))
    response.headers.update(poll_headers([video]))
    return video


_READS = errors(400, 404)
_WRITES = errors(400, 404, 408, 409, 413, 415)


@router.post("/videos", operation_id="create_video", openapi_extra=body_of("prompt"), responses=_WRITES)
async def create_video(asked: Asking, response: Response, service: Serving) -> Video:
    """Have a video rendered. The answer comes as soon as the job is stored; it is rendered whatever happens then."""
    form = await read_form(asked.request, max_bytes=service.config.serve.max_body_bytes)
    wish = read_wish(form.fields, service.config)
    return await accepted(response, service, wish, asked.origin(form))


@router.get("/videos", operation_id="list_videos", responses=_READS)
async def list_videos(
    owner: Owner,
    service: Serving,
    after: Annotated[str | None, Query(description="The last id of the page before.", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Order, Query(description="By the time of creation.")] = "desc",
) -> VideoPage:
    """Videos of this key, newest first."""
    page = await run_in_threadpool(service.jobs.page, owner, after=after, limit=limit, order=order)
    return await page_view(service, page)


@router.get("/videos/{video_id}", operation_id="retrieve_video", responses=_READS)
async def retrieve_video(response: Response, job: OwnJob, service: Serving) -> Video:
    """The video now; openapi-poll-after-ms says when to ask again."""
    video = await view(service, job)
    response.headers.update(poll_headers([video]))
    return video


@router.delete("/videos/{video_id}", operation_id="delete_video", responses=_READS)
async def delete_video(job: OwnJob, service: Serving) -> DeletedVideo:
    """Stop it, and remove all that belongs to it."""
    await service.backend.delete(job)
    return DeletedVideo(id=job.id)


@router.post("/videos/{video_id}/cancel", operation_id="cancel_video", responses=errors(400, 404, 409))
async def cancel_video(job: OwnJob, service: Serving) -> Video:
    """Stop it within a denoising step; 409 when it has ended otherwise."""
    await service.backend.cancel(job, "cancelled by its owner")
    video = await view(service, job)
    if video.status != "cancelled":
        raise ApiError(
            409,
            "video_has_ended",
            f"video {job.id!r} is {video.status}, so there is nothing to cancel; delete removes it",
            param="video_id",
            headers={"x-should-retry": "false"},
        )
    return video


_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The clip (task t2i: a PNG), its middle frame, or up to 25 frames in a grid.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES},
    },
    206: {
        "description": "The part of the clip that a Range header asks for.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CLIP_TYPES},
    },
    **errors(400, 404, 416),
}
Wanted = Annotated[Variant, Query(description="thumbnail is WebP, spritesheet JPEG.")]


@router.get(
    "/videos/{video_id}/content", operation_id="video_content", responses=_CONTENT, response_class=StreamingResponse
)
async def video_content(request: Request, job: OwnJob, service: Serving, variant: Wanted = "video") -> Response:
    """What was rendered; 400 with code "video_not_ready" until the status is "completed"."""
    return await content(request, service.jobs, service.previews, job, variant)


router.head(
    "/videos/{video_id}/content",
    operation_id="video_content_head",
    responses={status: {"description": one["description"]} for status, one in _CONTENT.items()},
    response_class=Response,
)(video_content)
