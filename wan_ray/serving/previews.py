"""Small pictures of a finished clip: one frame, and a sheet of frames over its length; memory does not grow with it.

A clip is an MP4 of ours, or a PNG, which counts as a clip of one frame.
"""

import io
import math
from collections.abc import Sequence

from PIL import Image

from wan_ray.media.image import decode_image
from wan_ray.media.source import local_file
from wan_ray.media.video import probe, read_some_frames

_THUMBNAIL_SIDE = 512
_TILE_SIDE = 192
_MAX_TILES = 25
_QUALITY = 80


def thumbnail(clip: bytes, suffix: str) -> bytes:
    """The clip's middle frame as WebP, no side longer than 512 pixels. suffix is the clip's, such as ".mp4".

    StageError for a damaged video, RequestError for a damaged image.
    """
    [frame] = _pictures(clip, suffix, max_frames=1, max_side=_THUMBNAIL_SIDE)
    return _saved(frame, "WEBP")


def spritesheet(clip: bytes, suffix: str) -> bytes:
    """Up to 25 frames as one JPEG, row by row: the first, the last, and what lies between at even steps.

    The grid is as near to square as its number of frames allows; cells without a frame are black. Errors as thumbnail.
    """
    tiles = _pictures(clip, suffix, max_frames=_MAX_TILES, max_side=_TILE_SIDE)
    width, height = tiles[0].size
    columns = math.ceil(math.sqrt(len(tiles)))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    return _saved(sheet, "JPEG")


def _pictures(clip: bytes, suffix: str, *, max_frames: int, max_side: int) -> list[Image.Image]:
    if suffix == ".png":
        picture = Image.fromarray(decode_image(clip, what="the clip"))
        picture.thumbnail((max_side, max_side))
        return [picture]
    with local_file(clip, what="the clip") as path:
        info = probe(path)
        scale = min(1, max_side / max(info.width, info.height))
        frames = read_some_frames(
            path,
            _spread(info.num_frames, max_frames),
            width=max(1, round(info.width * scale)),
            height=max(1, round(info.height * scale)),
        )
    return [Image.fromarray(frame) for frame in frames]


def _spread(num_frames: int, max_frames: int) -> Sequence[int]:
    """Which frames to show: the middle one alone, or several from the first to the last."""
    num_shown = min(num_frames, max_frames)
    if num_shown == 1:
        return [num_frames // 2]
    return [round(i * (num_frames - 1) / (num_shown - 1)) for i in range(num_shown)]


def _saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=_QUALITY)
    return buffer.getvalue()
