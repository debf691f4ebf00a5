"""A control video and its mask as the released code reads them, for `compat: released`: it decides length and size.

Frames come evenly spaced from the whole source, as many as the size leaves room for, whatever their rate; the mask is
resized as a picture, so that it has soft edges. Wan2.1 wan/utils/vace_processor.py (9737cba); Pillow's resizing is
within a level of it.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from wan_ray.errors import RequestError
from wan_ray.media.fit import Fit, cover_fit, fit_frame
from wan_ray.media.frame_stream import TimedFrame, stream_frames
from wan_ray.media.source import local_file, name_of
from wan_ray.sizes import released_vace_shape


@dataclass(frozen=True, kw_only=True)
class ReleasedSource:
    """frames uint8 [F,H,W,3]; mask float32 [F,H,W] of any value from 0 to 1; the rest as in LoadedVideo."""

    frames: np.ndarray
    mask: np.ndarray
    frame_indices: list[int]
    source_fps: float
    fit: Fit


def load_as_released(control_video: str, mask_video: str | None, *, max_pixels: int) -> ReleasedSource:
    """The clip that the released code would make of a source for a size of max_pixels; without a mask all is generated.

    RequestError as stream_frames raises it. Each source is read twice, first for its length.
    """
    width, height, starts_s, ends_s = _measured(control_video, "control_video")
    num_frames = len(starts_s)
    if mask_video is not None:
        num_frames = min(num_frames, len(_measured(mask_video, "mask_video")[2]))
    columns, rows, length = released_vace_shape(width, height, num_frames, max_pixels)
    indices = _evenly_spaced(starts_s[:num_frames], ends_s[:num_frames], length)
    frames = _picked(control_video, "control_video", indices, width=columns, height=rows)
    if mask_video is None:
        mask = np.ones(frames.shape[:3], np.float32)
    else:
        mask = _picked(mask_video, "mask_video", indices, width=columns, height=rows)[..., 0] / np.float32(255)
    return ReleasedSource(
        frames=frames,
        mask=mask,
        frame_indices=indices,
        source_fps=len(ends_s) / ends_s[-1] if ends_s[-1] else 0.0,
        fit=cover_fit(width, height, width=columns, height=rows),
    )


@contextmanager
def _streamed(source: str, what: str) -> Iterator[Iterator[TimedFrame]]:
    name = f"{what}: {name_of(source)}"
    with local_file(source, what=what) as path, closing(stream_frames(path, what=name)) as stream:
        yield stream


def _measured(source: str, what: str) -> tuple[int, int, list[float], list[float]]:
    """Width, height, and when each frame begins and ends to be shown."""
    width = height = 0
    times_s = []
    with _streamed(source, what) as stream:
        for frame in stream:
            height, width, _ = frame.rgb.shape
            times_s.append(frame.time_s)
    if not times_s:
        raise RequestError(f"{what}: {name_of(source)} has no frames; give a video that has some")
    step_s = times_s[-1] - times_s[-2] if len(times_s) > 1 else 0.0
    return width, height, times_s, [*times_s[1:], times_s[-1] + step_s]


def _evenly_spaced(starts_s: list[float], ends_s: list[float], length: int) -> list[int]:
    """For times from 0 to the middle of the last frame, the first frame that is on display then."""
    starts, ends = np.array([starts_s, ends_s], np.float32)
    times = np.linspace(0.0, (starts[-1] + ends[-1]) / 2, length)[:, None]
    return np.argmax((times >= starts) & (times <= ends), axis=1).tolist()


def _picked(source: str, what: str, indices: list[int], *, width: int, height: int) -> np.ndarray:
    """The frames of these numbers, which never decrease, fitted to the size, uint8 [F,H,W,3]."""
    picked = np.empty((len(indices), height, width, 3), np.uint8)
    with _streamed(source, what) as stream:
        for number, frame in enumerate(stream):
            places = [place for place, index in enumerate(indices) if index == number]
            if places:
                rows, columns, _ = frame.rgb.shape
                picked[places] = fit_frame(frame.rgb, cover_fit(columns, rows, width=width, height=height))
            if number == indices[-1]:
                break
    return picked
