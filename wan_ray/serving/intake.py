"""The bytes of what clients gave as images and videos, bounded and checked before anything is promised."""

from starlette.concurrency import run_in_threadpool

from wan_ray.config import RenderConfig
from wan_ray.errors import RequestError
from wan_ray.media.source import read_source
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.fields import Source
from wan_ray.serving.forms import Held, Upload
from wan_ray.serving.pictures import check_media
from wan_ray.serving.remote import fetch_media


async def media_bytes(source: Source, config: RenderConfig) -> bytes:
    """What the source holds; ApiError 400 when it cannot be had, or is nothing that its field takes."""
    limits, value = config.serve, source.value
    if isinstance(value, Held):
        data = value.data
    elif isinstance(value, Upload):
        data = await value.read()
    elif value[:5].lower() == "data:":
        try:
            data = await run_in_threadpool(read_source, value, what=source.field, max_bytes=limits.max_body_bytes)
        except RequestError as error:
            raise ApiError(400, "invalid_media", str(error), param=source.field) from None
    else:
        data = await fetch_media(
            value, allowed_hosts=limits.allowed_media_hosts, max_bytes=limits.max_body_bytes, param=source.field
        )
    if not data:
        raise ApiError(400, "invalid_media", f"{source.field}: the file is empty; send one", param=source.field)
    await run_in_threadpool(check_media, source.field, data)
    return data
