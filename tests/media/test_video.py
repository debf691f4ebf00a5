import itertools
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import StageError
from wan_ray.media.video import encode_mp4, probe, read_frames

WIDTH, HEIGHT = 192, 128
COLORS = [
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0),
    (0, 255, 255), (255, 0, 255), (255, 255, 255), (0, 0, 0),
    (128, 128, 128), (200, 30, 90), (30, 180, 60), (20, 40, 200),
]  # fmt: skip
SETTINGS = {"width": WIDTH, "height": HEIGHT, "fps": 16.0, "crf": 10, "preset": "veryfast", "threads": 1}


def color_bars(num_frames):
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for i, color in enumerate(COLORS):
        frame[i // 4 * 43 : (i // 4 + 1) * 43, i % 4 * 48 : (i % 4 + 1) * 48] = color
    return np.repeat(frame[None], num_frames, axis=0)


def noise(num_frames, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, HEIGHT, WIDTH, 3), np.uint8)


def ffmpeg_children():
    """Process ids of ffmpeg processes this one started and has not reaped, zombies too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, _, parent = re.match(r"(\d+) \((.*)\) (\w) (\d+)", stat.read_text()).groups()
        except OSError:
            continue
        if "ffmpeg" in name and int(parent) == os.getpid():
            found.append(int(pid))
    return found


def test_saturated_colors_come_back_within_three_levels(tmp_path):
    bars = color_bars(9)
    assert encode_mp4([bars[:1], bars[1:5], bars[5:]], path=tmp_path / "a.mp4", **SETTINGS) == 9
    frames = read_frames(tmp_path / "a.mp4")
    assert frames.shape == bars.shape
    for i, color in enumerate(COLORS):
        y, x = i // 4 * 43 + 20, i % 4 * 48 + 24
        np.testing.assert_allclose(frames[:, y, x].astype(int), np.tile(color, (9, 1)), atol=3)


def test_smooth_colors_come_back_without_jags_or_darkening(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    encode_mp4([smooth[None]], path=tmp_path / "a.mp4", **{**SETTINGS, "crf": 1})
    error = read_frames(tmp_path / "a.mp4")[0].astype(float) - smooth
    assert np.sqrt(np.mean(error**2)) < 2
    assert abs(np.mean(error)) < 0.3


def test_the_file_is_tagged_as_what_it_is(tmp_path):
    encode_mp4([color_bars(5)], path=tmp_path / "a.mp4", **SETTINGS)
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps, info.num_frames) == (WIDTH, HEIGHT, 16.0, 5)
    assert (info.codec, info.pixel_format, info.color) == ("h264", "yuv420p", "tv, bt709, progressive")
    # The same in the container: primaries, transfer, matrix all 1 (BT.709), full range off.
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in (tmp_path / "a.mp4").read_bytes()


def test_a_broken_frame_rate_is_kept(tmp_path):
    encode_mp4([color_bars(3)], path=tmp_path / "a.mp4", **{**SETTINGS, "fps": 23.976})
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(23.976, abs=0.01)


def test_the_index_stands_before_the_frames_and_no_software_is_named(tmp_path):
    encode_mp4([noise(5)], path=tmp_path / "a.mp4", **SETTINGS)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"Lavf" not in data
    assert b"Lavc" not in data
    assert b"\xa9too" not in data
    assert b"\xa9nam" not in data


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_frames_give_the_same_bytes(tmp_path, threads):
    for name in ("a.mp4", "b.mp4"):
        encode_mp4([noise(12)], path=tmp_path / name, **{**SETTINGS, "threads": threads})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_how_frames_are_cut_into_chunks_changes_nothing(tmp_path):
    frames = noise(6)
    encode_mp4([frames], path=tmp_path / "a.mp4", **SETTINGS)
    encode_mp4((frame[None] for frame in frames), path=tmp_path / "b.mp4", **SETTINGS)
    encode_mp4([frames[:, :, ::-1][:, :, ::-1]], path=tmp_path / "c.mp4", **SETTINGS)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


def test_frames_are_read_from_bytes_as_from_a_file(tmp_path):
    encode_mp4([color_bars(3)], path=tmp_path / "a.mp4", **SETTINGS)
    np.testing.assert_array_equal(read_frames((tmp_path / "a.mp4").read_bytes()), read_frames(str(tmp_path / "a.mp4")))


def test_a_preset_ffmpeg_does_not_know_fails_with_its_words_though_frames_keep_coming(tmp_path):
    endless = itertools.repeat(noise(8))
    with pytest.raises(StageError, match=r"'a\.mp4'(?s:.*)invalid preset 'hasty'"):
        encode_mp4(endless, path=tmp_path / "a.mp4", **{**SETTINGS, "preset": "hasty"})
    assert list(tmp_path.iterdir()) == []
    assert ffmpeg_children() == []


def test_an_odd_width_fails_with_ffmpegs_words(tmp_path):
    with pytest.raises(StageError, match="width not divisible by 2"):
        encode_mp4([noise(2)[:, :, 1:]], path=tmp_path / "a.mp4", **{**SETTINGS, "width": WIDTH - 1})


def test_an_ffmpeg_killed_midway_is_a_stage_error_and_leaves_nothing(tmp_path):
    def chunks():
        yield noise(4)
        (pid,) = ffmpeg_children()
        os.kill(pid, signal.SIGKILL)
        yield from (noise(4) for _ in range(100))

    with pytest.raises(StageError, match="exit -9"):
        encode_mp4(chunks(), path=tmp_path / "a.mp4", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    assert ffmpeg_children() == []


def test_an_error_of_the_chunks_passes_through_and_ffmpeg_is_reaped(tmp_path):
    def chunks():
        yield noise(4)
        raise KeyError("of the decoder")

    start = time.perf_counter()
    with pytest.raises(KeyError, match="of the decoder"):
        encode_mp4(chunks(), path=tmp_path / "a.mp4", **SETTINGS)
    assert time.perf_counter() - start < 10
    assert list(tmp_path.iterdir()) == []
    assert ffmpeg_children() == []


def test_no_frames_is_a_stage_error(tmp_path):
    with pytest.raises(StageError, match=r"'a\.mp4' got no frames"):
        encode_mp4([], path=tmp_path / "a.mp4", **SETTINGS)
    assert list(tmp_path.iterdir()) == []
    assert ffmpeg_children() == []


@pytest.mark.parametrize(
    "chunk",
    [noise(2)[:, :, :-16], noise(2)[0], noise(2)[..., :1], noise(2).astype(np.float32)],
    ids=["narrow", "flat", "grey", "float"],
)
def test_a_chunk_of_another_shape_or_type_is_refused(tmp_path, chunk):
    with pytest.raises(StageError, match=r"this video takes uint8 \[n, 128, 192, 3\]"):
        encode_mp4([chunk], path=tmp_path / "a.mp4", **SETTINGS)


@pytest.mark.parametrize("read", [probe, read_frames])
def test_what_is_no_video_is_a_stage_error_that_names_it(tmp_path, read):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(StageError, match=r"'notes\.mp4'(?s:.*)Invalid data"):
        read(tmp_path / "notes.mp4")
