"""A video file's frames one by one with the times they are shown at, through imageio-ffmpeg's binary.

Only the frame in hand is in memory. The file comes from a user: formats that name other files, such as playlists, are
not opened, and nothing damaged is passed on as a picture.
"""

import queue
import re
import subprocess
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import imageio_ffmpeg
import numpy as np

from wan_ray.errors import RequestError, StageError
from wan_ray.media.image import MAX_PICTURE_PIXELS, check_picture_size
from wan_ray.media.source import likeness

_FORMATS = "mov,matroska,gif,avi,mpegts"  # ffmpeg's names for MP4 and MOV, WebM and MKV, GIF, AVI, MPEG-TS
_IN_WORDS = "MP4, WebM, GIF, MOV, MKV, AVI or MPEG-TS"
# As in video.py: the scaler's quick way darkens, and takes color from the nearest chroma sample.
_SCALER = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_CLOCK = re.compile(r"config in time_base: (\d+)/(\d+), frame_rate: (\d+)/(\d+)")
_FRAME = re.compile(
    r"n: *\d+ pts: *(?P<pts>-?\d+|NOPTS) .*?fmt:(?P<format>\w+) .*?sar:(?P<sar>\d+/\d+) s:(?P<size>\d+x\d+)"
)
# What it says about opening names a temporary file of ours.
_COMPLAINT = re.compile(r"\[(?:error|fatal)\] (?!Error opening)(.*)")
_ALPHA = re.compile(r"rgba|bgra|argb|abgr|gbra|yuva|ya8|ya16|pal8")
_COUNTED = re.compile(r"^frame=(\d+)", re.MULTILINE)
_MAX_COMPLAINTS = 3


@dataclass(frozen=True, kw_only=True)
class TimedFrame:
    """An upright frame, uint8 [H,W,3], and when it is shown, the first at 0.

    pixel_aspect is a pixel's width / height. nominal_fps is the rate that the file states or seems to have.
    """

    rgb: np.ndarray
    time_s: float
    pixel_aspect: float
    nominal_fps: float


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What ffmpeg says of a frame before it writes its pixels."""

    time_s: float | None
    width: int
    height: int
    pixel_aspect: float
    has_alpha: bool
    nominal_fps: float


def stream_frames(path: Path, *, what: str) -> Generator[TimedFrame, None, None]:
    """The frames in the order they are shown; `what` names the file in messages. ffmpeg ends when the iterator closes.

    Color by the file's tags, on white where it is transparent. RequestError for what is no video, once decoding meets
    damage, for too large a picture, for frames without times, and where the size changes.
    """
    process = subprocess.Popen(_command(path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = _Log(cast(BinaryIO, process.stderr))
    try:
        yield from _frames(cast(BinaryIO, process.stdout), log, what)
        if process.wait() < 0:
            raise StageError(f"{what}: ffmpeg was killed by signal {-process.returncode} while decoding")
        if process.returncode > 0:
            raise _unreadable(path, log.complaints, what)
    finally:
        process.kill()
        process.wait()
        log.close()
        cast(BinaryIO, process.stdout).close()


def count_frames(path: Path, *, at_most: int) -> int:
    """How many frames the video holds, up to at_most + 1, by its packets: none is decoded."""
    counted = ["-c", "copy", "-frames:v", str(at_most + 1), "-f", "null", "-progress", "pipe:1", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-nostats", "-v", "error", *_source(path), *counted]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return max(map(int, _COUNTED.findall(done.stdout)), default=0)


def _source(path: Path) -> list[str]:
    trusted = ["-protocol_whitelist", "file", "-format_whitelist", _FORMATS, "-max_pixels", str(MAX_PICTURE_PIXELS)]
    return ["-xerror", "-threads", "1", *trusted, "-i", f"file:{path.absolute()}", "-map", "0:V:0"]


def _command(path: Path) -> list[str]:
    # showinfo says each frame's time on stderr before its pixels come; passthrough neither drops nor repeats any.
    frames = ["-vf", "showinfo=checksum=0,format=rgba", "-sws_flags", _SCALER, "-fps_mode", "passthrough"]
    level = ["-hide_banner", "-nostdin", "-nostats", "-v", "level+info", "-filter_threads", "1"]
    return [imageio_ffmpeg.get_ffmpeg_exe(), *level, *_source(path), *frames, "-f", "rawvideo", "pipe:1"]


class _Log:
    """ffmpeg's words, read by a thread so that ffmpeg never waits for us: what it shows, and its complaints."""

    def __init__(self, stderr: BinaryIO) -> None:
        self.complaints: dict[str, None] = {}  # in their order, each once
        self._stderr = stderr
        self._shown: queue.SimpleQueue[_Shown | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="ffmpeg-log", daemon=True)
        self._thread.start()

    def next_frame(self) -> _Shown | None:
        """What is said of the next frame; None when there are no more."""
        return self._shown.get()

    def close(self) -> None:
        """Once ffmpeg has ended."""
        self._thread.join()
        self._stderr.close()

    def _read(self) -> None:
        seconds, nominal_fps = 0.0, 0.0
        for raw in self._stderr:
            line = raw.decode(errors="replace")
            if clock := _CLOCK.search(line):
                ticks, of, frames, per = map(int, clock.groups())
                seconds, nominal_fps = ticks / of, frames / (per or 1)
            elif found := _FRAME.search(line):
                self._shown.put(_shown(found, seconds=seconds, nominal_fps=nominal_fps))
            elif (complaint := _COMPLAINT.search(line)) and len(self.complaints) < _MAX_COMPLAINTS:
                self.complaints[complaint[1].strip(" .\n")] = None
        self._shown.put(None)


def _shown(found: re.Match[str], *, seconds: float, nominal_fps: float) -> _Shown:
    width, height = map(int, found["size"].split("x"))
    across, down = map(int, found["sar"].split("/"))
    return _Shown(
        time_s=None if found["pts"] == "NOPTS" else int(found["pts"]) * seconds,
        width=width,
        height=height,
        pixel_aspect=across / down if across and down else 1.0,
        has_alpha=_ALPHA.match(found["format"]) is not None,
        nominal_fps=nominal_fps,
    )


def _frames(stdout: BinaryIO, log: _Log, what: str) -> Iterator[TimedFrame]:
    first: _Shown | None = None
    number = 0
    while shown := log.next_frame():
        if first is None:
            first = shown
            check_picture_size(first.width, first.height, what=what)
        if shown.time_s is None or first.time_s is None:
            raise RequestError(f"{what}: its frame {number} has no time; convert it to MP4")
        if (shown.width, shown.height) != (first.width, first.height):
            raise RequestError(
                f"{what}: its size changes from {first.width}x{first.height} to {shown.width}x{shown.height} at frame "
                f"{number}; give frames of one size"
            )
        data = stdout.read(shown.width * shown.height * 4)
        if len(data) < shown.width * shown.height * 4:
            return
        rgba = np.frombuffer(data, np.uint8).reshape(shown.height, shown.width, 4)
        yield TimedFrame(
            rgb=_on_white(rgba) if shown.has_alpha else rgba[..., :3],
            time_s=shown.time_s - first.time_s,
            pixel_aspect=first.pixel_aspect,
            nominal_fps=shown.nominal_fps,
        )
        number += 1


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _unreadable(path: Path, complaints: Iterable[str], what: str) -> RequestError:
    words = "; ".join(complaints)
    if "matches no streams" in words:
        return RequestError(f"{what} holds no video; give a file with a video track")
    with path.open("rb") as file:
        begins = likeness(file.read(64))
    return RequestError(
        f"{what} is no sound video; it begins like {begins}, and ffmpeg says: {words or 'nothing'}. "
        f"Give an undamaged {_IN_WORDS} file or a folder of images"
    )
