"""What a finished job made: its clip, whole or in parts as browsers ask for them, and small pictures of it."""

import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import anyio.to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from wan_ray.serving.api_error import ApiError
from wan_ray.serving.jobs import Job, JobStore, why_failed
from wan_ray.serving.previews import spritesheet, thumbnail
from wan_ray.storage.records import Record

Variant = Literal["video", "thumbnail", "spritesheet"]

_CHUNK_BYTES = 2**18
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPES = {".mp4": "video/mp4", ".png": "image/png"}
CLIP_TYPES = tuple(_TYPES.values())
CONTENT_TYPES = (*CLIP_TYPES, "image/webp", "image/jpeg")
_MAX_KEPT = 64


class Previews:
    """Small pictures of the last clips that were asked for, and two makers of them at a time. One event loop's."""

    def __init__(self, jobs: JobStore) -> None:
        self._jobs = jobs
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._makers = anyio.CapacityLimiter(2)

    async def get(self, record: Record, variant: Variant) -> bytes:
        """The picture of an "ok" record's clip."""
        key = (record.id, variant)
        if key not in self._kept:
            self._kept[key] = await anyio.to_thread.run_sync(self._made, record, variant, limiter=self._makers)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return self._kept[key]

    def _made(self, record: Record, variant: Variant) -> bytes:
        make = thumbnail if variant == "thumbnail" else spritesheet
        return make(self._jobs.clip(record), _suffix(record))


async def finished(jobs: JobStore, job: Job) -> Record:
    """The record of a job that has a clip; ApiError 400 when there is none, or not yet."""
    record = await run_in_threadpool(jobs.record, job.id)
    if record is not None and record.status == "ok":
        return record
    if record is None:
        state = "is not rendered yet; ask again when its status is 'completed'"
    else:
        state = f"has no content: {why_failed(job, record)}"
    raise ApiError(400, "video_not_ready", f"video {job.id!r} {state}", param="video_id")


async def content(request: Request, jobs: JobStore, previews: Previews, job: Job, variant: Variant) -> Response:
    """The clip, or a picture of it."""
    record = await finished(jobs, job)
    if variant == "video":
        return await run_in_threadpool(_clip, request, jobs, record)
    data = await previews.get(record, variant)
    kind = "image/webp" if variant == "thumbnail" else "image/jpeg"
    return Response(data, media_type=kind, headers={"cache-control": "private, no-cache"})


def _clip(request: Request, jobs: JobStore, record: Record) -> Response:
    file = jobs.store.open(str(record.clip))
    size = file.seek(0, 2)
    suffix = _suffix(record)
    headers = {
        "accept-ranges": "bytes",
        "etag": f'"{record.sha256}"',
        "cache-control": "private, no-cache",
        "content-disposition": f'inline; filename="{record.id}{suffix}"',
    }
    start, end, status = 0, size, 200
    wanted = request.headers.get("range")
    if wanted is not None and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
        part = _part(wanted, size)
        if part is not None:
            (start, end), status = part, 206
            if start >= end:
                file.close()
                raise ApiError(
                    416,
                    "range_not_satisfiable",
                    f"range {wanted[:80]!r} has none of the clip's {size} bytes; ask for others",
                    headers={"content-range": f"bytes */{size}"},
                )
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    kind = _TYPES.get(suffix, "application/octet-stream")
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, media_type=kind, headers=headers)
    return StreamingResponse(_bytes(file, start, end), status_code=status, media_type=kind, headers=headers)


def _part(header: str, size: int) -> tuple[int, int] | None:
    """(start, end) of a single range, empty where it asks for nothing there is; None for what is to be ignored."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    start = int(found[1])
    if found[2] and int(found[2]) < start:
        return None
    return start, min(size, int(found[2]) + 1) if found[2] else size


def _bytes(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (chunk := file.read(min(_CHUNK_BYTES, end - start))):
            start += len(chunk)
            yield chunk


def _suffix(record: Record) -> str:
    return PurePosixPath(str(record.clip)).suffix
