"""How alike two clips are, by ffmpeg's filters, which score one frame after the other."""

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wan_ray.errors import StageError
from wan_ray.media.video import ffmpeg, raw_frames

_LOG_CHARS = 2000
# VMAF's model for copies of one source, which gives no points for more contrast than the source has.
_GRAPH = (
    "[0:v]format=yuv444p,split=3[a][b][c];[1:v]format=yuv444p,split=3[d][e][f];"
    "[a][d]psnr;[b][e]ssim;[c][f]libvmaf=model=version=vmaf_v0.6.1neg"
)
_SCORES = {
    "psnr_db": re.compile(r"PSNR .*?average:(inf|[\d.]+)"),
    "ssim": re.compile(r"SSIM .*?All:([\d.]+)"),
    "vmaf": re.compile(r"VMAF score: ([\d.]+)"),
}


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """psnr_db: infinite for equal frames. ssim: 1 for equal ones. vmaf: 0 to 100, as people rate copies on a TV."""

    psnr_db: float
    ssim: float
    vmaf: float


def likeness(found: np.ndarray, wanted: np.ndarray) -> Likeness:
    """Of two clips of one size, uint8 [F, H, W, 3], in YUV; StageError when ffmpeg cannot tell."""
    if found.shape != wanted.shape:
        raise StageError(f"clips of {list(found.shape)} and {list(wanted.shape)} cannot be compared; use one size")
    _, height, width, _ = found.shape
    with tempfile.TemporaryDirectory(prefix="wan-ray-") as folder:
        command = [*ffmpeg("info"), "-nostats"]
        for name, frames in (("found", found), ("wanted", wanted)):
            file = Path(folder) / name
            frames.tofile(file)
            command += [*raw_frames(width=width, height=height), "-i", str(file)]
        ended = subprocess.run(
            [*command, "-lavfi", _GRAPH, "-f", "null", "-"], capture_output=True, text=True, check=False
        )
    scores = {name: pattern.search(ended.stderr) for name, pattern in _SCORES.items()}
    if ended.returncode != 0 or not all(scores.values()):
        raise StageError(f"ffmpeg cannot compare two clips: {ended.stderr[-_LOG_CHARS:].strip() or 'it said nothing'}")
    told = {name: float(match[1]) if match else math.nan for name, match in scores.items()}
    return Likeness(**told)
