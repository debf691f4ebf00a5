"""Small videos, folders and images that say of each frame which it is, and rows of task vace about them."""

import math
import subprocess
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from wan_ray.media.vace_row import VaceRow, read_vace_row
from wan_ray.media.video import encode_mp4
from wan_ray.request import RenderRequest
from wan_ray.resolved import resolve
from wan_ray.variants import get_variant

WIDTH, HEIGHT = 96, 64
_NUM_BITS = 10


def numbered(num_frames: int) -> np.ndarray:
    """Frames that show their own number: ten bright or dark squares across the middle, on a slope of color."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.repeat(np.stack([x * 2, y * 2, 90 + 0 * x], -1).astype(np.uint8)[None], num_frames, axis=0)
    for number, frame in enumerate(frames):
        for bit in range(_NUM_BITS):
            frame[24:40, 8 + 8 * bit : 16 + 8 * bit] = 250 * (number >> bit & 1)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames of any size show, which show the whole of a numbered frame."""
    height, width = frames.shape[1:3]
    centers = [round((12 + 8 * bit) * width / WIDTH) for bit in range(_NUM_BITS)]
    bits = frames[:, height // 2, centers].mean(axis=-1) > 125
    return [sum(int(bit) << i for i, bit in enumerate(row)) for row in bits]


def write_mp4(path: Path, frames: np.ndarray, fps: float = 16) -> str:
    height, width = frames.shape[1:3]
    encode_mp4([frames], path=path, width=width, height=height, fps=fps, crf=8, preset="ultrafast", threads=1)
    return str(path)


def decoded(path: str | Path, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """The frames of a video as ffmpeg gives them by itself."""
    flags = "scale=out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-vf", flags]
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    data = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def write_folder(path: Path, frames: np.ndarray) -> str:
    """As PNG files, without loss."""
    path.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame_{number}.png")
    return str(path)


def write_png(path: Path, picture: np.ndarray) -> str:
    Image.fromarray(picture).save(path)
    return str(path)


def nearest(i: int, source_fps: float, fps: float) -> int:
    """The source frame nearest in time to i / fps, of two equally near the earlier."""
    return math.ceil(Fraction(i * source_fps) / Fraction(fps) - Fraction(1, 2))


def all_nearest(num_source: int, source_fps: float, fps: float) -> list[int]:
    """The source frames that a whole source gives: its last one is on display until it ends, and none comes twice."""
    times = range(math.floor(num_source * fps / source_fps) + 1)
    return sorted({min(nearest(i, source_fps, fps), num_source - 1) for i in times})


def covered(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resized by one scale until both sides are covered, and the middle of that."""
    rows, columns = frames.shape[1:3]
    scale = max(width / columns, height / rows)
    size = (round(columns * scale), round(rows * scale))
    whole = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return whole[:, top : top + height, left : left + width]


def vace_row(vace: Mapping[str, object] | None = None, **fields: object) -> VaceRow:
    """What becomes of a row of five frames of 96x64, or of others where the fields say so."""
    size = {"width": WIDTH, "height": HEIGHT, "num_frames": 5}
    request = RenderRequest.model_validate({"task": "vace", "prompt": "a", "vace": vace, **size, **fields})
    return read_vace_row(resolve(request, get_variant("debug-vace")))
