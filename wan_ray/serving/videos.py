"""Views of jobs: a Video object says what was asked for, how far it is, and what became of it."""

import re
import time
from collections.abc import Iterable
from datetime import datetime

from starlette.concurrency import run_in_threadpool

from wan_ray.errors import QueueDownError
from wan_ray.resolved import RESOLVED_FIELDS
from wan_ray.serving.backend import Live
from wan_ray.serving.jobs import Job, JobPage, why_failed
from wan_ray.serving.schemas import JobError, Status, Video, VideoPage
from wan_ray.serving.service import Service
from wan_ray.storage.records import Record

_SHOWN = (*RESOLVED_FIELDS, "seed")
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


async def view(service: Service, job: Job) -> Video:
    """The job now."""
    return (await views(service, [job]))[0]


async def views(service: Service, jobs: list[Job]) -> list[Video]:
    """The jobs now, in their order."""
    # The queue first: a job that ends in between has its record by then.
    try:
        live = await service.backend.live([job.id for job in jobs])
    except QueueDownError:
        live = {}
    records = await run_in_threadpool(service.jobs.records_of, jobs)
    return [video_of(job, records[job.id], live.get(job.id)) for job in jobs]


async def page_view(service: Service, page: JobPage) -> VideoPage:
    """A page of a list."""
    data = await views(service, list(page.jobs))
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=page.has_more,
    )


def video_of(job: Job, record: Record | None, live: Live | None) -> Video:
    """A job without a record that the queue does not know waits: it is being taken on, or the queue restarts."""
    fields = {name: value for name in _SHOWN if (value := job.request.get(name)) is not None}
    if record is not None:
        fields |= {name: value for name in _SHOWN if (value := getattr(record, name)) is not None}
    status, progress = _status(record, live)
    video: dict[str, object] = {
        "id": job.id,
        "model": job.model,
        "status": status,
        "progress": progress,
        "created_at": int(job.created_at),
        "completed_at": None if record is None else int(datetime.fromisoformat(record.created_at).timestamp()),
        "expires_at": None if job.expires_at is None else int(job.expires_at),
        "error": _error(job, record),
        "prompt": job.request["prompt"],
        "remixed_from_video_id": job.remixed_from,
        "task": job.request["task"],
        "prompt_as_run": None if record is None else record.prompt_as_run,
        "metadata": job.metadata,
        "labels": job.request.get("labels", {}),
        "queue_position": live.ahead if record is None and live is not None and live.status == "queued" else None,
        "priority": job.priority,
        "deadline_at": None if job.deadline_at is None else int(job.deadline_at),
        **fields,
    }
    video["seconds"] = job.seconds or _seconds(video)
    video["size"] = job.size or _size(video)
    return Video.model_validate(video)


def poll_headers(videos: Iterable[Video]) -> dict[str, str]:
    """How long to wait before asking again: the longer, the older the job."""
    waiting = [video for video in videos if video.status in ("queued", "in_progress")]
    if not waiting:
        return {}
    age_s = time.time() - max(video.created_at for video in waiting)
    return {"openai-poll-after-ms": str(int(min(max(100 * age_s, 250), 5000)))}


def _status(record: Record | None, live: Live | None) -> tuple[Status, int]:
    if record is not None:
        if record.status == "ok":
            return "completed", 100
        return ("cancelled" if record.error_type == "CancelledError" else "failed"), 0
    if live is None or live.status == "queued":
        return "queued", 0
    return "in_progress", min(99, 100 * live.step // max(1, live.num_steps))


def _error(job: Job, record: Record | None) -> JobError | None:
    if record is None or record.status == "ok":
        return None
    code = _WORD.sub("_", record.error_type or "Error").lower()
    return JobError(code=code, message=why_failed(job, record))


def _seconds(video: dict[str, object]) -> str:
    """What the clip lasts; "auto" while a source's rate decides."""
    frames, fps = video.get("num_frames"), video.get("fps")
    return f"{frames / fps:g}" if isinstance(frames, int | float) and isinstance(fps, int | float) else "auto"


def _size(video: dict[str, object]) -> str:
    """The clip's size; "auto" while an image decides."""
    return f"{video['width']}x{video['height']}" if video.get("width") and video.get("height") else "auto"
