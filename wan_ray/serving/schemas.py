"""What the routes answer, as OpenAI's clients read it, with our fields beside theirs."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]

_EXAMPLE_VIDEO: dict[str, JsonValue] = {
    "id": "video_0197c2d5f31c5f0e6b1d2a3c4e5f60718293a4b5c6d7e8f",
    "object": "video",
    "model": "t2v-1.3B",
    "status": "in_progress",
    "progress": 42,
    "created_at": 1764349200,
    "completed_at": None,
    "expires_at": 1764954000,
    "error": None,
    "prompt": "a cat on a skateboard",
    "remixed_from_video_id": None,
    "seconds": "5",
    "size": "832x480",
    "task": "t2v",
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "fps": 16.0,
    "seed": 7,
}


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ErrorDetail(_Answer):
    """message: value, rule and fix, for people. code: for programs. param: the field at fault, where one is."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorAnswer(_Answer):
    """Every answer that is not 2xx."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "message": "there is no video 'video_1'",
                    "type": "invalid_request_error",
                    "param": "video_id",
                    "code": "video_not_found",
                }
            }
        }
    )
    error: ErrorDetail


class JobError(_Answer):
    """Why a video failed or was cancelled; code is "request_error" where the request itself was at fault."""

    code: str
    message: str


class Video(_Answer):
    """A job and what became of it.

    seconds and size are as they were asked for, else what was chosen; num_frames, fps, width and height are what is
    rendered (null: an image or video decides, once it is read). queue_position counts the jobs ahead of one that waits.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_VIDEO]})

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: JobError | None = None
    prompt: str
    remixed_from_video_id: str | None = None
    seconds: str
    size: str
    task: str
    prompt_as_run: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    solver: str | None = None
    metadata: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    queue_position: int | None = None
    priority: int = 0
    deadline_at: int | None = None


class VideoPage(_Answer):
    """Some of the key's videos; the next page is after=last_id while has_more."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(_Answer):
    """What a delete answers."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Image(_Answer):
    """A still: its PNG as base64, or where to get it with the same key. id is the job's, as of a video."""

    id: str
    b64_json: str | None = None
    url: str | None = None


class ImageAnswer(_Answer):
    """What /v1/images/generations answers."""

    created: int
    data: list[Image]


class Model(_Answer):
    """A model of this server: the tasks it renders with what each does by default, and the sizes it was trained at."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tasks: dict[str, dict[str, JsonValue]]
    sizes: list[str]


class ModelPage(_Answer):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Answer):
    """Whether jobs are taken on."""

    status: Literal["ok", "unavailable"]
