"""Frames to H.264 as they come, and back, through imageio-ffmpeg's binary, with colours that say what they are.

F frames, H height, W width; frames are RGB, uint8 [F,H,W,3].
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import imageio_ffmpeg
import numpy as np

from wan_ray.errors import StageError

_LOG_CHARS = 2000
# Without these flags swscale takes color from the nearest chroma sample and darkens by two levels: on smooth color
# a round trip is off by 8.7 levels RMS instead of 1.3.
_SCALER = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_INPUT = re.compile(
    r"Stream #0:\d+.*?: Video: (?P<codec>\w+).*?, (?P<pixel_format>\w+)(?:\((?P<color>[^)]*)\))?.*?"
    r", (?P<width>\d+)x(?P<height>\d+).*?, (?P<fps>[\d.]+) fps"
)
_OUTPUT = re.compile(r"Output #0.*?: Video: rawvideo.*?, (?P<width>\d+)x(?P<height>\d+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds: size as coded, before a rotation; color in ffmpeg's words, such as "tv, bt709"."""

    width: int
    height: int
    fps: float
    num_frames: int
    codec: str
    pixel_format: str
    color: str


def encode_mp4(
    chunks: Iterable[np.ndarray],
    *,
    path: str | Path,
    width: int,
    height: int,
    fps: float,
    crf: float,
    preset: str,
    threads: int,
) -> int:
    """Writes the chunks, uint8 [n,H,W,3], to the path as they come; the number of frames.

    H.264 in yuv420p (width and height even), BT.709 in TV range and tagged so, index in front (faststart), no metadata.
    The same frames give the same bytes for the same number of threads. StageError for a chunk of another shape, for no
    frames, and with ffmpeg's words when it fails. After any error, the iterator's own too, no file is left.
    """
    path = Path(path).absolute()
    command = _encode_command(path, width=width, height=height, fps=fps, crf=crf, preset=preset, threads=threads)
    # ffmpeg's words go to a file: it never has to wait until someone reads them.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)
        stdin = cast(BinaryIO, process.stdin)
        try:
            num_frames, all_taken = _feed(stdin, chunks, (height, width, 3))
            if all_taken and num_frames == 0:
                raise StageError(f"{path.name!r} got no frames; a video needs at least one")
            if process.wait() != 0 or not all_taken:
                log.seek(0)
                raise _failure(path.name, process.returncode, log.read())
        except BaseException:
            process.kill()
            process.wait()
            path.unlink(missing_ok=True)
            raise
        finally:
            with suppress(BrokenPipeError):
                stdin.close()
    return num_frames


def read_frames(source: str | Path | bytes) -> np.ndarray:
    """All frames of a video, file or bytes, read-only [F,H,W,3]: upright, full-range RGB by the file's color tags."""
    if isinstance(source, bytes):
        # An mp4 with its index at the end cannot be read from a pipe.
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(source)
            file.flush()
            return read_frames(file.name)
    output = ("-vf", f"scale=out_range=pc:{_SCALER}", "-pix_fmt", "rgb24", "-f", "rawvideo")
    frames, log = _read_with_ffmpeg(source, *output)
    size = _OUTPUT.search(log)
    if size is None or not frames:
        raise StageError(f"{Path(source).name!r} has no frames: {log[-_LOG_CHARS:]}")
    return np.frombuffer(frames, np.uint8).reshape(-1, int(size["height"]), int(size["width"]), 3)


def read_some_frames(path: str | Path, indices: Sequence[int], *, width: int, height: int) -> np.ndarray:
    """The frames at these places, ascending, each made that size: uint8 [n,H,W,3]. No others are kept in memory.

    StageError when the video is damaged or has no frame at one of the places.
    """
    chosen = "+".join(f"eq(n,{index})" for index in indices)
    scale = f"scale={width}:{height}:out_range=pc:{_SCALER}"
    output = ("-vf", f"select='{chosen}',{scale}", "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo")
    frames, log = _read_with_ffmpeg(path, *output)
    if len(frames) != len(indices) * height * width * 3:
        raise StageError(f"{Path(path).name!r} lacks some of its frames {list(indices)}: {log[-_LOG_CHARS:]}")
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width, 3)


def probe(path: str | Path) -> VideoInfo:
    """What the file's first video stream holds, counted without decoding it; StageError when it is no video."""
    counts, log = _read_with_ffmpeg(path, "-c", "copy", "-progress", "pipe:1", "-nostats", "-f", "null")
    found = _INPUT.search(log)
    num_frames = re.findall(rb"^frame=\s*(\d+)", counts, re.MULTILINE)
    if found is None or not num_frames:
        raise StageError(f"ffmpeg cannot tell size, rate and length of {Path(path).name!r}: {log[-_LOG_CHARS:]}")
    return VideoInfo(
        width=int(found["width"]),
        height=int(found["height"]),
        fps=float(found["fps"]),
        num_frames=int(num_frames[-1]),
        codec=found["codec"],
        pixel_format=found["pixel_format"],
        color=found["color"] or "",
    )


def _encode_command(
    path: Path, *, width: int, height: int, fps: float, crf: float, preset: str, threads: int
) -> list[str]:
    source = [*raw_frames(width=width, height=height), "-framerate", str(fps), "-i", "pipe:0"]
    # scale converts with the BT.709 matrix (its default for RGB is BT.601), setparams tells the encoder so.
    convert = f"scale=out_color_matrix=bt709:out_range=tv:{_SCALER},format=yuv420p"
    tag = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    encoder = ["-c:v", "libx264", "-crf", str(crf), "-preset", preset, "-threads", str(threads)]
    # Keeps ffmpeg's name and version out of the file; x264's own note on its settings stays, inside the stream.
    bare = ["-map_metadata", "-1", "-metadata:s:v", "encoder=", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    container = ["-movflags", "+faststart", "-f", "mp4", str(path)]
    return [*ffmpeg("warning"), *source, "-vf", f"{convert},{tag}", *encoder, *bare, *container]


def raw_frames(*, width: int, height: int) -> list[str]:
    """That the next input is RGB frames as they lie in memory."""
    return ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]


def ffmpeg(level: str) -> list[str]:
    """The start of a command; level: which of ffmpeg's words are wanted."""
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", "-v", level]


def _feed(stdin: BinaryIO, chunks: Iterable[np.ndarray], frame_shape: tuple[int, int, int]) -> tuple[int, bool]:
    """Writes all frames and closes; how many they were, and False when ffmpeg stopped taking them."""
    num_frames = 0
    for chunk in chunks:
        if chunk.dtype != np.uint8 or chunk.shape[1:] != frame_shape:
            raise StageError(
                f"a chunk of frames is {chunk.dtype} {list(chunk.shape)}; this video takes uint8 [n, "
                f"{', '.join(map(str, frame_shape))}]"
            )
        try:
            stdin.write(np.ascontiguousarray(chunk).data)
        except BrokenPipeError:
            return num_frames, False
        num_frames += len(chunk)
    try:
        stdin.close()
    except BrokenPipeError:
        return num_frames, False
    return num_frames, True


def _read_with_ffmpeg(path: str | Path, *output: str) -> tuple[bytes, str]:
    """What ffmpeg makes of the file's first video stream on stdout, and what it says meanwhile."""
    path = Path(path).absolute()
    command = [*ffmpeg("info"), "-i", str(path), "-map", "0:v:0", *output, "pipe:1"]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if finished.returncode != 0:
        raise _failure(path.name, finished.returncode, finished.stderr)
    return finished.stdout, finished.stderr.decode(errors="replace")


def _failure(name: str, returncode: int, log: bytes) -> StageError:
    words = log.decode(errors="replace").strip()[-_LOG_CHARS:]
    return StageError(f"ffmpeg failed on {name!r} (exit {returncode}): {words or 'it said nothing'}")
