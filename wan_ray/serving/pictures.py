"""Whether an image or video that a client sent may be kept for a job: what it is, and how much there is to decode."""

from contextlib import closing
from pathlib import Path

from wan_ray.errors import RequestError
from wan_ray.media.check import KINDS, check_source
from wan_ray.media.frame_stream import count_frames, stream_frames
from wan_ray.media.image import picture_size
from wan_ray.media.source import local_file, looks_like_image
from wan_ray.serving.api_error import ApiError

MAX_PICTURE_PIXELS = 40_000_000  # 8K and more; decoding takes up to 20 bytes for each
MAX_VIDEO_PIXELS = 5_000_000_000  # of all frames: 2400 of 1920x1080, 12500 of 832x480


def check_media(field: str, data: bytes) -> None:
    """ApiError 400 when the field takes no such file, or it holds more than this server decodes.

    Headers and a video's first frame are looked at. To be called in a thread: ffmpeg reads the videos.
    """
    try:
        check_source(field, data)
        if KINDS[field] == "image" or (KINDS[field] == "image or video" and looks_like_image(data)):
            _check_picture(field, *picture_size(data, what=field))
        else:
            with local_file(data, what=field) as path:
                _check_video(field, path)
    except RequestError as error:
        raise ApiError(400, "invalid_media", str(error), param=field) from None


def _check_picture(field: str, width: int, height: int) -> None:
    if width * height > MAX_PICTURE_PIXELS:
        raise RequestError(
            f"{field} is {width}x{height}; at most {MAX_PICTURE_PIXELS} pixels are decoded of a picture: shrink it"
        )


def _check_video(field: str, path: Path) -> None:
    with closing(stream_frames(path, what=field)) as frames:
        height, width, _ = next(frames).rgb.shape
    _check_picture(field, width, height)
    most = MAX_VIDEO_PIXELS // (width * height)
    if count_frames(path, at_most=most) > most:
        raise RequestError(
            f"{field} holds more than {most} frames of {width}x{height}; at most {MAX_VIDEO_PIXELS} pixels of all "
            "frames are decoded: cut it or make it smaller"
        )
