"""Videos made of others: remix, edits, extensions; and what is not served, said in words."""

import math
from collections.abc import Mapping
from dataclasses import replace

from fastapi import APIRouter, Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from wan_ray.config import RenderConfig
from wan_ray.errors import StageError
from wan_ray.media.source import local_file
from wan_ray.media.video import VideoInfo, probe
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.content import finished
from wan_ray.serving.fields import ALIASES, MAX_SECONDS, ROW_FIELDS, Source, number_above_0, read_wish, source_of
from wan_ray.serving.forms import Field, Held, read_form
from wan_ray.serving.intake import media_bytes
from wan_ray.serving.jobs import Job, JobStore
from wan_ray.serving.openapi import body_of, errors
from wan_ray.serving.schemas import ErrorAnswer, Video
from wan_ray.serving.service import Owner, Service, Serving
from wan_ray.serving.video_routes import Asking, OwnJob, accepted
from wan_ray.variants import TASK_DEFAULTS, get_variant

router = APIRouter(prefix="/v1", tags=["videos"])

_WRITES = errors(400, 404, 408, 409, 413, 415)
_KEPT_FRAMES = 17  # of the video that is continued: a second, from which its motion is seen


@router.post(
    "/videos/{video_id}/remix",
    operation_id="remix_video",
    openapi_extra=body_of("prompt", examples={"another animal": {"prompt": "a dog on a skateboard"}}),
    responses=_WRITES,
)
async def remix_video(asked: Asking, response: Response, job: OwnJob, service: Serving) -> Video:
    """The same request again, seed and images included, with another prompt and whatever else is given."""
    form = await read_form(asked.request, max_bytes=service.config.serve.max_body_bytes)
    before = await run_in_threadpool(_fields_of, service.jobs, job, form.fields)
    wish = read_wish({**before, **form.fields}, service.config)
    if not {"num_frames", "fps", "seconds"} & set(form.fields):
        wish = replace(wish, seconds=job.seconds)
    if not {"width", "height", "size"} & set(form.fields):
        wish = replace(wish, size=job.size)
    return await accepted(response, service, wish, asked.origin(form, remixed_from=job.id))


@router.post(
    "/videos/edits",
    operation_id="edit_video",
    openapi_extra=body_of(
        "prompt", "video", clip=True, examples={"winter": {"prompt": "in snow", "video": "video_..."}}
    ),
    responses=_WRITES,
)
async def edit_video(asked: Asking, response: Response, service: Serving) -> Video:
    """A video painted anew: as the prompt says, over its shapes and motion; with mask_video, only where that is white.

    VACE renders it; its other modes are had by the field vace.
    """
    form = await read_form(asked.request, max_bytes=service.config.serve.max_body_bytes)
    fields, clip, info, remixed_from = await _with_clip(service, asked.owner, form.fields)
    fps = _rate(fields, info, service.config)
    if "num_frames" not in fields and "seconds" not in fields:
        most = min(int(info.num_frames * fps / info.fps), service.config.serve.max_frames)
        fields["num_frames"] = max(5, (most - 1) // 4 * 4 + 1)
    masked = any(ALIASES.get(name, name) == "mask_video" for name in fields)
    usual: dict[str, Field] = {"mode": "inpaint"} if masked else {"mode": "control", "process": "gray"}
    fields.setdefault("vace", usual)
    wish = read_wish({**fields, "fps": fps, "control_video": clip}, service.config)
    return await accepted(response, service, wish, asked.origin(form, remixed_from=remixed_from))


@router.post(
    "/videos/extensions",
    operation_id="extend_video",
    openapi_extra=body_of(
        "prompt", "seconds", "video", clip=True, examples={"on": {"prompt": "on", "seconds": "4", "video": "video_..."}}
    ),
    responses=_WRITES,
)
async def extend_video(asked: Asking, response: Response, service: Serving) -> Video:
    """A video continued by so many seconds: the last second of it, then what is new. VACE renders it."""
    form = await read_form(asked.request, max_bytes=service.config.serve.max_body_bytes)
    fields, clip, info, remixed_from = await _with_clip(service, asked.owner, form.fields)
    fps = _rate(fields, info, service.config)
    seconds = number_above_0("seconds", fields.pop("seconds", None), MAX_SECONDS)
    if seconds is None or "num_frames" in fields or "vace" in fields:
        raise ApiError(
            400,
            "missing_required_parameter" if seconds is None else "invalid_value",
            "seconds: an extension is as long as it says; give seconds, and neither num_frames nor vace",
            param="seconds",
        )
    kept = max(1, min(_KEPT_FRAMES, int(info.num_frames * fps / info.fps)))
    fields["num_frames"] = 4 * max(math.ceil(kept / 4), math.floor((kept + seconds * fps - 1) / 4 + 0.5)) + 1
    vace: dict[str, Field] = {"mode": "extend", "first": clip, "num_first": kept}
    wish = replace(read_wish({**fields, "fps": fps, "vace": vace}, service.config), seconds=f"{seconds:g}")
    return await accepted(response, service, wish, asked.origin(form, remixed_from=remixed_from))


@router.post("/videos/characters", operation_id="create_character", status_code=404, responses=errors(404))
async def create_character(owner: Owner) -> ErrorAnswer:
    """Not served: Wan2.1 knows no characters. Send pictures of one as reference_images to a VACE model."""
    raise _no_characters()


@router.get(
    "/videos/characters/{character_id}", operation_id="retrieve_character", status_code=404, responses=errors(404)
)
async def retrieve_character(character_id: str, owner: Owner) -> ErrorAnswer:
    """Not served, as create_character."""
    raise _no_characters()


def _no_characters() -> ApiError:
    return ApiError(
        404,
        "characters_not_supported",
        "there are no characters here; send pictures of one as reference_images with each request (task vace)",
    )


def _fields_of(jobs: JobStore, job: Job, given: Mapping[str, Field]) -> dict[str, Field]:
    """What a job asked for, as a body's fields, but for what is given anew."""
    anew = {ALIASES.get(name, name) for name in given}
    anew |= {"num_frames"} if "seconds" in anew else set()
    anew |= {"width", "height"} if "size" in anew else set()

    uploads = jobs.uploads(job.id)

    def held(value: JsonValue) -> Field:
        if isinstance(value, list):
            return [held(one) for one in value]
        if isinstance(value, dict):
            return {name: held(one) for name, one in value.items()}
        return Held(uploads[value]) if isinstance(value, str) and value in uploads else value

    fields = {name: held(value) for name, value in job.request.items() if name in ROW_FIELDS and name not in anew}
    return {**fields, "model": job.model}


async def _with_clip(
    service: Service, owner: str, given: Mapping[str, Field]
) -> tuple[dict[str, Field], Held, VideoInfo, str | None]:
    """The other fields, the clip in `video`, what it is, and the id of the video that it is of; size as it is.

    ApiError 400 when there is none, and when no model here could do anything with one.
    """
    able = [get_variant(m.variant) for m in service.config.all_models if "vace" in get_variant(m.variant).tasks]
    if not able:
        known = ", ".join(model.variant for model in service.config.all_models)
        message = f"edits and extensions are rendered by a VACE model, and this server has {known}; use another server"
        raise ApiError(400, "task_not_served", message, param="video")
    fields: dict[str, Field] = {k: value for k, value in given.items() if value is not None and k != "video"}
    video, job_id = given.get("video"), None
    if isinstance(video, dict) and set(video) == {"id"}:
        video = video["id"]
    if isinstance(video, str) and video.startswith("video_"):
        job_id = video
        job = await run_in_threadpool(service.jobs.get, owner, job_id)
        video = Held(await run_in_threadpool(service.jobs.clip, await finished(service.jobs, job)))
    elif video is None:
        raise ApiError(400, "missing_required_parameter", "video: missing; send a file or a video's id", param="video")
    source = Source(field="control_video", value=source_of("video", video))
    clip = Held(await media_bytes(source, service.config))
    info = await run_in_threadpool(_probed, clip.data)
    sized = {"size", "width", "height"} & set(fields)
    if not sized and info.width % 16 == info.height % 16 == 0 and info.width * info.height <= able[0].max_pixels:
        fields |= {"width": info.width, "height": info.height}
    fields.setdefault("task", "vace")
    return fields, clip, info, job_id


def _probed(clip: bytes) -> VideoInfo:
    with local_file(clip, what="video") as path:
        try:
            return probe(path)
        except StageError as error:
            raise ApiError(400, "invalid_media", f"video: {error}", param="video") from None


def _rate(fields: Mapping[str, Field], info: VideoInfo, config: RenderConfig) -> float:
    """Frames a second of the result: as asked for, else the source's, and never more than a task's."""
    usual = number_above_0("fps", config.defaults.get("fps"), 240.0) or TASK_DEFAULTS["vace"].fps
    return number_above_0("fps", fields.get("fps"), 240.0) or min(info.fps, usual)
