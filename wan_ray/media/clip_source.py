"""A row's video as the frames that the model gets: which source frames, and where their pixels go, is ours to say.

Time: frame i of the clip shows source time i / fps. That is the frame nearest in time; of two equally near, to within
the millisecond that some files count in, the earlier. Time 0 is the first frame's.
No source frame is shown twice: a source of fewer frames per second than asked is refused, and one that ends too early.
A folder of images has no times: its images are the clip's frames, one by one.
Where no rate is asked for, it is the source's own, but no more than the usual one.
Space: resized to cover the clip's size and cropped to its middle, or exactly of that size. F frames, H, W.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat
from typing import Literal

import numpy as np

from wan_ray.errors import RequestError
from wan_ray.media.fit import Fit, cover_fit, fit_frame, fit_mask
from wan_ray.media.frame_stream import TimedFrame, stream_frames
from wan_ray.media.image import decode_image
from wan_ray.media.source import (
    MAX_VIDEO_BYTES,
    is_folder,
    local_file,
    looks_like_image,
    name_of,
    read_folder,
)
from wan_ray.variants import TASK_DEFAULTS

FitMode = Literal["cover", "exact"]
End = Literal["first", "last"]
# WebM rounds times to the millisecond: of two frames equally near to a time, one may seem nearer by as much.
_TIE_S = 0.00101
# The rate a file states is told where its frames' times agree, for 2667 ms of WebM are 80 frames at 29.996 per second.
_NOMINAL_TOLERANCE = 0.01
_MASK_THRESHOLD = 128
_USUAL_FPS = TASK_DEFAULTS["vace"].fps


@dataclass(frozen=True, kw_only=True)
class LoadedVideo:
    """frames uint8 [F,H,W,3]; frame i is source frame frame_indices[i], which the source shows at times_s[i].

    What is labelled in source frame frame_indices[i] is labelled in frame i, once moved as `fit` says. source_fps is
    None for images, which have no times; fps is the rate that the frames were taken at.
    """

    frames: np.ndarray
    fps: float
    frame_indices: list[int]
    times_s: list[float]
    source_fps: float | None
    fit: Fit


def load_video(
    source: str | bytes,
    *,
    num_frames: int,
    fps: float | None,
    width: int,
    height: int,
    fit: FitMode = "cover",
    what: str = "control_video",
    max_bytes: int = MAX_VIDEO_BYTES,
) -> LoadedVideo:
    """The clip of that many frames, rate and size from the source's start; one source frame at a time is in memory.

    RequestError as read_source and stream_frames raise it, for a source with too few frames (see above), and with fit
    "exact" for one of another size.
    """
    name = f"{what}: {name_of(source)}"
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    indices: list[int] = []
    times_s: list[float] = []
    nominal_fps = 0.0
    place: Fit | None = None
    with _opened(source, what=what, max_bytes=max_bytes) as (opened, timed):
        stream, fps = _timed(opened, fps, timed=timed)
        for index, frame in _nearest_in_time(stream, num_frames=num_frames, fps=fps, name=name):
            place = place or _place(frame, width=width, height=height, fit=fit, name=name)
            frames[len(indices)] = fit_frame(frame.rgb, place)
            indices.append(index)
            times_s.append(frame.time_s)
            nominal_fps = frame.nominal_fps
    assert place is not None
    source_fps = _rate(indices, times_s, nominal_fps) if timed else None
    return LoadedVideo(frames=frames, fps=fps, frame_indices=indices, times_s=times_s, source_fps=source_fps, fit=place)


def load_end(
    source: str | bytes,
    *,
    end: End,
    num_frames: int | None,
    max_frames: int,
    fps: float | None,
    width: int,
    height: int,
    max_bytes: int = MAX_VIDEO_BYTES,
) -> LoadedVideo:
    """What a clip begins with ("first") or ends with ("last"): an image, or the frames of a video next to the rest.

    Those are a beginning's last num_frames and an end's first; all of them where None, up to max_frames. RequestError
    as load_video, and for more frames or fewer.
    """
    what = f"vace.{end}"
    name = f"{what}: {name_of(source)}"
    kept: deque[tuple[int, float, np.ndarray]] = deque(maxlen=num_frames)
    num_seen, nominal_fps = 0, 0.0
    place: Fit | None = None
    with _opened(source, what=what, max_bytes=max_bytes, still="once") as (opened, timed):
        stream, fps = _timed(opened, fps, timed=timed)
        for index, frame in _nearest_in_time(stream, num_frames=None, fps=fps, name=name):
            place = place or _place(frame, width=width, height=height, fit="cover", name=name)
            kept.append((index, frame.time_s, fit_frame(frame.rgb, place)))
            num_seen, nominal_fps = num_seen + 1, frame.nominal_fps
            if num_frames is None and num_seen > max_frames:
                raise RequestError(
                    f"{name} has more than {max_frames} frames at fps={fps:g}, which leaves none to generate; keep a "
                    f"part by num_{end}, or set num_frames higher"
                )
            if end == "last" and num_seen == num_frames:
                break
    if place is None or num_seen < (num_frames or 1):
        raise RequestError(
            f"{name} has {num_seen} frames at fps={fps:g}, fewer than num_{end}={num_frames or 1}; keep fewer"
        )
    indices, times_s, frames = ([*column] for column in zip(*kept, strict=True))
    source_fps = _rate(indices, times_s, nominal_fps) if timed else None
    return LoadedVideo(
        frames=np.stack(frames), fps=fps, frame_indices=indices, times_s=times_s, source_fps=source_fps, fit=place
    )


def load_mask_video(
    source: str | bytes, *, like: LoadedVideo, what: str = "mask_video", max_bytes: int = MAX_VIDEO_BYTES
) -> np.ndarray:
    """Where to generate, 1, and where to keep, 0: float32 [F,H,W], white and black of the mask of `like`'s source.

    Mask frame n belongs to source frame n; a still image belongs to all. Halfway gray and brighter is 1, so that the
    grays that lossy video leaves are gone. RequestError when the mask is of another size or rate than the source, ends
    before it, or marks nothing.
    """
    name = f"{what}: {name_of(source)}"
    with _opened(source, what=what, max_bytes=max_bytes, still="always") as (stream, timed):
        masks = list(_masks(stream, like=like, timed=timed, name=name))
    mask = np.stack(masks)
    if not mask.any():
        raise RequestError(
            f"{name} marks nothing: no pixel of the clip is {_MASK_THRESHOLD} or brighter; make white what is to be "
            "generated (255, not 1) and black what is to be kept"
        )
    return mask.astype(np.float32)


@contextmanager
def _opened(
    source: str | bytes, *, what: str, max_bytes: int, still: Literal["once", "always"] | None = None
) -> Iterator[tuple[Iterator[TimedFrame], bool]]:
    """The source's frames, and whether their times mean anything. An image is refused, or its frame comes so often."""
    name = f"{what}: {name_of(source)}"
    if isinstance(source, str) and is_folder(source, what=what):
        yield _folder_frames(source, what=what), False
        return
    with local_file(source, what=what, max_bytes=max_bytes) as path:
        with path.open("rb") as file:
            is_still = still is not None and looks_like_image(file.read(64))
        if is_still:
            frame = _untimed(decode_image(path.read_bytes(), what=name))
            yield iter([frame]) if still == "once" else repeat(frame), False
            return
        with closing(stream_frames(path, what=name)) as frames:
            yield frames, True


def _folder_frames(source: str, *, what: str) -> Iterator[TimedFrame]:
    size: tuple[int, ...] | None = None
    for file, data in read_folder(source, what=what):
        name = f"{what}: {name_of(source)}: {file!r}"
        rgb = decode_image(data, what=name)
        if size is not None and rgb.shape != size:
            raise RequestError(
                f"{name} is {rgb.shape[1]}x{rgb.shape[0]}, the images before it {size[1]}x{size[0]}; "
                "give images of one size"
            )
        size = rgb.shape
        yield _untimed(rgb)


def _untimed(rgb: np.ndarray) -> TimedFrame:
    return TimedFrame(rgb=rgb, time_s=0.0, pixel_aspect=1.0, nominal_fps=0.0)


def _timed(frames: Iterator[TimedFrame], fps: float | None, *, timed: bool) -> tuple[Iterator[TimedFrame], float]:
    """The frames with times, and the rate to take them at."""
    if timed and fps is None:
        head = list(islice(frames, 1))
        frames, nominal_fps = chain(head, frames), head[0].nominal_fps if head else 0.0
        return frames, min(nominal_fps or _USUAL_FPS, _USUAL_FPS)
    rate = fps or _USUAL_FPS
    return (frames if timed else (replace(frame, time_s=index / rate) for index, frame in enumerate(frames))), rate


def _nearest_in_time(
    frames: Iterable[TimedFrame], *, num_frames: int | None, fps: float, name: str
) -> Iterator[tuple[int, TimedFrame]]:
    """The frame for each of the times 0, 1 / fps, ... with its index in the source, as soon as that is known.

    Of num_frames None, as many as there are.
    """
    before: TimedFrame | None = None
    index = last = -1
    taken = 0
    step_s = 0.0
    for frame in frames:
        while before is not None and taken != num_frames and before.time_s + frame.time_s >= 2 * taken / fps - _TIE_S:
            if index == last:
                gap_s = max(step_s, frame.time_s - before.time_s)
                raise _too_slow(before.time_s, gap_s, number=taken, fps=fps, name=name)
            yield index, before
            last, taken = index, taken + 1
        if taken == num_frames:
            return
        if before is not None:
            step_s = frame.time_s - before.time_s
        before, index = frame, index + 1
    # The last frame stays on display for one more step: five seconds at any rate make 81 frames at 16 per second.
    if before is not None and index > last and taken / fps <= before.time_s + step_s + _TIE_S:
        yield index, before
        taken += 1
    if num_frames is not None and taken < num_frames:
        raise _too_short(num_source=index + 1, taken=taken, num_frames=num_frames, fps=fps, name=name)


def _too_slow(time_s: float, gap_s: float, *, number: int, fps: float, name: str) -> RequestError:
    return RequestError(
        f"{name} has frames {gap_s:.3f} s apart, so that fps={fps:g} would show the one at {time_s:.3f} s twice, as "
        f"frames {number - 1} and {number}; set fps to {1 / gap_s:.4g} or less, or give a source with more frames per "
        "second"
    )


def _too_short(*, num_source: int, taken: int, num_frames: int, fps: float, name: str) -> RequestError:
    if num_source == 0:
        return RequestError(f"{name} has no frames; give a video that has some")
    fitting = (taken - 1) // 4 * 4 + 1
    way_out = f"set num_frames to {fitting} or less" + (", or fps higher" if num_source >= num_frames else "")
    return RequestError(
        f"{name} ends after {num_source} frames, which are {taken} at fps={fps:g}, fewer than num_frames={num_frames}; "
        f"{way_out}, or give a longer source"
    )


def _rate(indices: list[int], times_s: list[float], nominal_fps: float) -> float:
    if times_s[-1] == times_s[0]:
        return nominal_fps
    measured = (indices[-1] - indices[0]) / (times_s[-1] - times_s[0])
    return nominal_fps if abs(measured - nominal_fps) < _NOMINAL_TOLERANCE * measured else measured


def _place(frame: TimedFrame, *, width: int, height: int, fit: FitMode, name: str) -> Fit:
    source_height, source_width = frame.rgb.shape[:2]
    if fit == "exact" and (source_width, source_height) != (width, height):
        raise RequestError(
            f"{name} is {source_width}x{source_height}, not the clip's {width}x{height}; set width and height to it, "
            "or let it be resized and cropped"
        )
    aspect = frame.pixel_aspect if fit == "cover" else 1.0
    return cover_fit(source_width, source_height, width=width, height=height, pixel_aspect=aspect)


def _masks(stream: Iterable[TimedFrame], *, like: LoadedVideo, timed: bool, name: str) -> Iterator[np.ndarray]:
    """The mask of each of the clip's frames, uint8 [H,W] of 0 and 1."""
    wanted = dict(zip(like.frame_indices, like.times_s, strict=True))
    size = (like.fit.source_height, like.fit.source_width)
    index = -1
    for index, frame in enumerate(stream):
        if index not in wanted:
            continue
        if frame.rgb.shape[:2] != size:
            raise RequestError(
                f"{name} is {frame.rgb.shape[1]}x{frame.rgb.shape[0]}, the video it masks {size[1]}x{size[0]}; "
                "give them one size"
            )
        if timed and like.source_fps and abs(frame.time_s - wanted[index]) > 0.5 / like.source_fps:
            raise RequestError(
                f"{name} shows its frame {index} at {frame.time_s:.3f} s, the video it masks at {wanted[index]:.3f} s; "
                "give them one frame rate"
            )
        gray = frame.rgb.mean(axis=2, dtype=np.float32)
        yield fit_mask((gray >= _MASK_THRESHOLD).astype(np.uint8), like.fit)
        if index == like.frame_indices[-1]:
            return
    raise RequestError(
        f"{name} ends after {index + 1} frames, but frame {like.frame_indices[-1]} of the video it masks is used; "
        "give one mask frame for each frame of the video, or one still image for all"
    )
