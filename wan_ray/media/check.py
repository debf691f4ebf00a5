"""Whether a row's images and videos can be used, as far as their headers and first frames tell: before any model runs.

Damage further on shows when they are decoded, which comes before they are encoded.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from wan_ray.errors import RequestError
from wan_ray.media.frame_stream import stream_frames
from wan_ray.media.image import check_image, decode_image
from wan_ray.media.source import (
    MAX_VIDEO_BYTES,
    is_folder,
    local_file,
    local_sketch,
    looks_like_image,
    name_of,
    read_folder,
    read_head,
)

Kind = Literal["image", "video", "image or video"]
# What each of a request's media is, and its name in messages.
_MEDIA: dict[str, tuple[str, Kind]] = {
    "image": ("image", "image"),
    "last_image": ("last_image", "image"),
    "control_video": ("control_video", "video"),
    "mask_video": ("mask_video", "image or video"),
    "reference_images": ("reference_images", "image"),
    "reference_masks": ("vace.reference_masks", "image"),
    "first": ("vace.first", "image or video"),
    "last": ("vace.last", "image or video"),
}
KINDS = dict(_MEDIA.values())  # by that name
_MAX_KEPT = 4096


class MediaCheck:
    """Remembers by path or URL what it found, for rows share sources; to be dropped after a pass, for files change."""

    def __init__(self) -> None:
        self.num_opened = 0
        self._found: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    def __call__(self, media: Mapping[str, Sequence[str]]) -> None:
        """RequestError for the first source that cannot be used; StorageError when one cannot be asked now."""
        for name, sources in media.items():
            for source in sources:
                if fault := self._fault(name, source):
                    raise RequestError(fault)

    def _fault(self, name: str, source: str) -> str | None:
        key = (name, source)
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        self.num_opened += 1
        fault = None
        try:
            check_source(_MEDIA[name][0], source)
        except RequestError as error:
            fault = str(error)
        if source[:5].lower() != "data:":
            self._found[key] = fault
            if len(self._found) > _MAX_KEPT:
                self._found.popitem(last=False)
        return fault


def check_source(what: str, source: str | bytes) -> None:
    """As MediaCheck, of one source; `what` is its name in messages, such as "image" or "vace.first"."""
    kind = KINDS[what]
    if kind == "image":
        check_image(source, what=what)
    elif isinstance(source, str) and is_folder(source, what=what):
        file, data = next(read_folder(source, what=what))
        decode_image(data, what=f"{what}: {name_of(source)}: {file!r}")
    elif kind == "image or video" and looks_like_image(read_head(source, what=what, max_bytes=MAX_VIDEO_BYTES)[0]):
        check_image(source, what=what)
    else:
        _check_video(what, source)


def _check_video(what: str, source: str | bytes) -> None:
    with local_sketch(source, what=what) as (path, is_whole):
        try:
            _check_first_frame(path, what=f"{what}: {name_of(source)}")
        except RequestError:
            if is_whole:
                raise
        else:
            return
    with local_file(source, what=what) as path:
        _check_first_frame(path, what=f"{what}: {name_of(source)}")


def _check_first_frame(path: Path, *, what: str) -> None:
    with closing(stream_frames(path, what=what)) as frames:
        if next(frames, None) is None:
            raise RequestError(f"{what} has no frames; give a video that has some")
