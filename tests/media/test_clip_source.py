import base64
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import RequestError, StageError
from wan_ray.media import frame_stream
from wan_ray.media.clip_source import load_mask_video, load_video
from wan_ray.media.fit import cover_fit, fit_frame, fit_mask
from wan_ray.media.frame_stream import stream_frames
from wan_ray.media.video import encode_mp4, read_frames

WIDTH, HEIGHT = 96, 64
NUM_BITS = 10
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SIZE = {"width": WIDTH, "height": HEIGHT}


def numbered(num_frames):
    """Frames that show their own number: ten bright or dark squares across the middle, on a slope of color."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.repeat(np.stack([x * 2, y * 2, 128 + 0 * x], -1).astype(np.uint8)[None], num_frames, axis=0)
    for number, frame in enumerate(frames):
        for bit in range(NUM_BITS):
            frame[24:40, 8 + 8 * bit : 16 + 8 * bit] = 255 * (number >> bit & 1)
    return frames


def numbers(frames):
    """The numbers that frames of any size show."""
    height, width = frames.shape[1:3]
    centers = [round((12 + 8 * bit) * width / WIDTH) for bit in range(NUM_BITS)]
    bits = frames[:, height // 2, centers].mean(axis=-1) > 127
    return [sum(int(bit) << i for i, bit in enumerate(row)) for row in bits]


def mp4(path, num_frames, fps, frames=None):
    chunks = [numbered(num_frames) if frames is None else frames]
    size = {"width": chunks[0].shape[2], "height": chunks[0].shape[1]}
    encode_mp4(chunks, path=path, fps=fps, crf=12, preset="ultrafast", threads=1, **size)
    return str(path)


def converted(source, path, *output, before=()):
    command = [FFMPEG, "-v", "error", "-y", *before, "-i", str(source), *output, "-threads", "1", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return str(path)


VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-crf", "20", "-b:v", "0")
FFV1 = ("-c:v", "ffv1", "-fps_mode", "passthrough", "-enc_time_base", "1:1000")


def nearest(i, source_fps, fps):
    """The source frame nearest in time to i / fps, of two equally near the earlier."""
    return math.ceil(Fraction(i * source_fps) / Fraction(fps) - Fraction(1, 2))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Five seconds of numbered frames at each of the rates that driving data come in."""
    folder = tmp_path_factory.mktemp("sources")
    return {fps: mp4(folder / f"{fps}.mp4", 5 * fps, fps) for fps in (10, 12, 24, 30, 60)}


@pytest.mark.parametrize(
    ("source_fps", "fps", "first"),
    [
        (10, 10, [0, 1, 2, 3]),
        (10, 8, [0, 1, 2, 4]),  # 1.25, 2.5 (two equally near), 3.75
        (12, 12, [0, 1, 2, 3]),
        (12, 10, [0, 1, 2, 4]),  # 1.2, 2.4, 3.6
        (24, 16, [0, 1, 3, 4]),  # 1.5, 3, 4.5
        (30, 16, [0, 2, 4, 6]),  # 1.875, 3.75, 5.625
        (30, 10, [0, 3, 6, 9]),
        (60, 16, [0, 4, 7, 11]),  # 3.75, 7.5, 11.25
        (60, 60, [0, 1, 2, 3]),
        (60, 25, [0, 2, 5, 7]),  # 2.4, 4.8, 7.2
        (60, 23.976, [0, 2, 5, 7]),  # 2.5025, 5.005, 7.5075: 0.04 ms off the middle is the middle
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_frame_i_shows_source_time_i_over_fps(sources, tmp_path, container, source_fps, fps, first):
    source = sources[source_fps]
    if container == "mkv":  # whose times are whole milliseconds, as WebM's
        source = converted(source, tmp_path / "a.mkv", "-c", "copy")
    num_frames = (int(4.9 * fps) - 1) // 4 * 4 + 1
    video = load_video(source, num_frames=num_frames, fps=fps, **SIZE)
    assert video.frame_indices[:4] == first
    if fps != 23.976:
        assert video.frame_indices == [nearest(i, source_fps, fps) for i in range(num_frames)]
    assert all(a < b for a, b in zip(video.frame_indices, video.frame_indices[1:], strict=False))
    assert numbers(video.frames) == video.frame_indices
    assert video.source_fps == source_fps
    assert video.times_s == pytest.approx([index / source_fps for index in video.frame_indices], abs=0.001)


@pytest.mark.parametrize("source_fps", [24, 30, 60])
def test_five_seconds_of_any_rate_are_81_frames_at_16(sources, source_fps):
    video = load_video(sources[source_fps], num_frames=81, fps=16, **SIZE)
    assert video.frames.shape == (81, HEIGHT, WIDTH, 3)
    assert video.frame_indices[-1] == 5 * source_fps - 1
    assert len(set(video.frame_indices)) == 81


@pytest.mark.parametrize(("source_fps", "fps"), [(10, 16), (12, 16), (24, 30), (30, 60)])
def test_a_source_of_fewer_frames_per_second_is_refused_with_the_rate_that_fits(sources, source_fps, fps):
    with pytest.raises(
        RequestError, match=rf"^control_video: .*fps={fps} would show .* twice.*set fps to {source_fps} or"
    ):
        load_video(sources[source_fps], num_frames=41, fps=fps, **SIZE)
    load_video(sources[source_fps], num_frames=41, fps=source_fps, **SIZE)


def test_a_rate_a_little_under_the_one_asked_is_near_enough(tmp_path):
    source = mp4(tmp_path / "a.mp4", 90, 29.97)
    video = load_video(source, num_frames=81, fps=30, **SIZE)
    assert video.frame_indices == list(range(81))
    assert video.source_fps == pytest.approx(29.97, abs=0.01)


def test_a_source_that_ends_too_early_is_refused_with_the_length_that_fits(sources):
    with pytest.raises(
        RequestError, match=r"ends after 150 frames, which are 80 at fps=15.9.*num_frames to 77 or less"
    ):
        load_video(sources[30], num_frames=85, fps=15.9, **SIZE)
    load_video(sources[30], num_frames=77, fps=15.9, **SIZE)


def test_one_frame_is_no_clip(tmp_path):
    with pytest.raises(RequestError, match="ends after 1 frames, which are 1 at fps=16"):
        load_video(mp4(tmp_path / "a.mp4", 1, 16), num_frames=5, fps=16, **SIZE)


def test_only_as_much_is_decoded_as_is_needed(tmp_path):
    good = Path(mp4(tmp_path / "a.mp4", 300, 30)).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good[: len(good) // 2])
    assert numbers(load_video(str(cut), num_frames=33, fps=16, **SIZE).frames)[-1] == 60
    with pytest.raises(RequestError, match="no sound video"):
        load_video(str(cut), num_frames=81, fps=8, **SIZE)


def test_frames_of_a_variable_rate_are_taken_by_their_times(tmp_path):
    # Frame n at n / 20 s, but from frame 10 on twice as dense: 0, .05 ... .5, .525, .55 ...
    base = mp4(tmp_path / "a.mp4", 60, 20)
    vfr = converted(base, tmp_path / "v.mkv", "-vf", "setpts='if(lt(N,10),N/20,0.5+(N-10)/40)/TB'", *FFV1)
    video = load_video(vfr, num_frames=17, fps=20, **SIZE)
    assert video.frame_indices == [*range(10), *range(10, 24, 2)]
    assert numbers(video.frames) == video.frame_indices
    assert video.times_s == pytest.approx([i / 20 for i in range(17)], abs=0.001)


def test_a_gap_in_a_variable_rate_would_repeat_a_frame_and_is_refused(tmp_path):
    base = mp4(tmp_path / "a.mp4", 30, 20)
    vfr = converted(base, tmp_path / "v.mkv", "-vf", "setpts='if(lt(N,10),N/20,1+N/20)/TB'", *FFV1)
    with pytest.raises(
        RequestError, match=r"1\.050 s apart.*one at 0\.450 s twice, as frames 9 and 10; set fps to 0\.95"
    ):
        load_video(vfr, num_frames=17, fps=20, **SIZE)


def test_a_frame_repeated_after_a_gap_is_refused_for_the_gap_before_it(tmp_path):
    base = mp4(tmp_path / "a.mp4", 30, 20)
    times = "setpts='if(lt(N,1),0,0.8+N/5)/TB'"  # 0, 1, 1.2, 1.4 ...
    vfr = converted(base, tmp_path / "v.mkv", "-vf", times, *FFV1)
    with pytest.raises(
        RequestError, match=r"1\.000 s apart.*one at 1\.000 s twice, as frames 1 and 2; set fps to 1 or less"
    ):
        load_video(vfr, num_frames=5, fps=1.9, **SIZE)


def test_times_are_counted_from_the_first_frame(tmp_path):
    base = mp4(tmp_path / "a.mp4", 20, 10)
    late = converted(base, tmp_path / "late.mkv", "-vf", "setpts=PTS+7/TB", *FFV1)
    video = load_video(late, num_frames=17, fps=10, **SIZE)
    assert video.frame_indices == list(range(17))
    assert video.times_s[0] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", VP9),
        ("b.webm", ("-c:v", "libvpx", "-deadline", "realtime", "-auto-alt-ref", "1", "-b:v", "2M")),
        ("a.gif", ()),
        ("a.mov", ("-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-g", "12")),
        ("a.avi", ("-c:v", "mpeg4", "-q:v", "2")),
        ("a.ts", ("-c:v", "libx264", "-bf", "3", "-b_strategy", "0", "-g", "12")),
        ("a.mkv", FFV1),
    ],
)
def test_every_kind_of_video_gives_the_same_frames(sources, tmp_path, name, options):
    source = converted(sources[10], tmp_path / name, *options)
    video = load_video(source, num_frames=45, fps=10, **SIZE)
    assert video.frame_indices == list(range(45))
    assert numbers(video.frames) == video.frame_indices
    assert video.source_fps == pytest.approx(10)
    original = read_frames(sources[10])[:45]
    assert np.abs(video.frames.astype(int) - original).mean() < (25 if name == "a.gif" else 8)  # 256 colors


def test_bytes_and_data_urls_give_what_the_file_gives(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = Path(sources[10]).read_bytes()
    for source in (data, "data:video/mp4;base64," + base64.b64encode(data).decode()):
        video = load_video(source, num_frames=5, fps=10, **SIZE)
        np.testing.assert_array_equal(video.frames, read_frames(data)[:5])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_taken_image_by_image(tmp_path):
    for number, frame in enumerate(numbered(12)):
        Image.fromarray(frame).save(tmp_path / f"frame_{number}.png")
    video = load_video(str(tmp_path), num_frames=9, fps=16, **SIZE)
    np.testing.assert_array_equal(video.frames, numbered(9))
    assert video.frame_indices == list(range(9))
    assert video.source_fps is None
    with pytest.raises(RequestError, match="ends after 12 frames, which are 12 at fps=16, fewer than num_frames=13"):
        load_video(str(tmp_path), num_frames=13, fps=16, **SIZE)


def test_a_folder_with_a_broken_or_another_sized_image_names_it(tmp_path):
    for number, frame in enumerate(numbered(5)):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    Image.fromarray(numbered(1)[0, :32]).save(tmp_path / "3.png")
    with pytest.raises(RequestError, match=r"'3\.png' is 96x32, the images before it 96x64"):
        load_video(str(tmp_path), num_frames=5, fps=16, **SIZE)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(RequestError, match=r"'3\.png' is no image that can be read"):
        load_video(str(tmp_path), num_frames=5, fps=16, **SIZE)


# Space


@pytest.mark.parametrize(
    ("source_size", "size", "resized", "crop"),
    [
        ((1600, 900), (832, 480), (853, 480), (10, 0)),  # nuScenes, as seen in the released loader
        ((1920, 1280), (832, 480), (832, 555), (0, 37)),
        ((640, 360), (1280, 720), (1280, 720), (0, 0)),
        ((480, 832), (832, 480), (832, 1442), (0, 481)),
    ],
)
def test_a_source_is_resized_to_cover_and_cropped_to_its_middle(source_size, size, resized, crop):
    fit = cover_fit(*source_size, width=size[0], height=size[1])
    assert (fit.resized_width, fit.resized_height) == resized
    assert (fit.crop_left, fit.crop_top) == crop
    assert (fit.width, fit.height) == size


def test_fitting_equals_resizing_the_whole_and_cropping_it():
    frame = np.random.default_rng(0).integers(0, 256, (90, 161, 3), np.uint8)
    fit = cover_fit(161, 90, width=64, height=48)
    whole = Image.fromarray(frame).resize((fit.resized_width, fit.resized_height), Image.Resampling.BICUBIC)
    wanted = np.asarray(whole)[fit.crop_top :, fit.crop_left :][:48, :64]
    assert np.abs(fit_frame(frame, fit).astype(int) - wanted).max() <= 1


def test_a_point_of_the_source_lies_where_the_recorded_fit_says(tmp_path):
    frames = np.zeros((5, 120, 200, 3), np.uint8)
    frames[:, 60:68, 90:98] = 255  # around (94, 64)
    video = load_video(mp4(tmp_path / "a.mp4", 5, 10, frames), num_frames=5, fps=10, width=128, height=96)
    fit = asdict(video.fit)
    y, x = (np.mean(axis) + 0.5 for axis in np.nonzero(video.frames[0, ..., 0] > 127))
    assert x == pytest.approx(94 * fit["resized_width"] / fit["source_width"] - fit["crop_left"], abs=0.3)
    assert y == pytest.approx(64 * fit["resized_height"] / fit["source_height"] - fit["crop_top"], abs=0.3)


def test_a_very_wide_source_costs_no_more_memory_than_its_window(tmp_path):
    frame = np.zeros((2, 16384, 3), np.uint8)
    fit = cover_fit(16384, 2, width=832, height=480)
    assert fit.resized_width == 16384 * 240
    assert fit_frame(frame, fit).shape == (480, 832, 3)


def test_exact_takes_only_the_size_itself(sources):
    exact = load_video(sources[10], num_frames=5, fps=10, fit="exact", **SIZE)
    np.testing.assert_array_equal(exact.frames, read_frames(sources[10])[:5])
    with pytest.raises(RequestError, match="is 96x64, not the clip's 96x48; set width and height to it"):
        load_video(sources[10], num_frames=5, fps=10, width=96, height=48, fit="exact")


def test_a_turned_video_is_upright(sources, tmp_path):
    turned = converted(sources[10], tmp_path / "a.mp4", "-c", "copy", before=("-display_rotation", "90"))
    video = load_video(turned, num_frames=5, fps=10, width=HEIGHT, height=WIDTH)
    assert (video.fit.source_width, video.fit.source_height) == (HEIGHT, WIDTH)
    # ffmpeg's display_rotation turns the picture against the clock.
    assert numbers(np.rot90(video.frames, -1, axes=(1, 2))) == [0, 1, 2, 3, 4]


def test_pixels_that_are_no_squares_become_squares(sources, tmp_path):
    wide = converted(sources[10], tmp_path / "a.mkv", "-vf", "setsar=2/1", *FFV1)
    video = load_video(wide, num_frames=5, fps=10, width=192, height=64)
    assert (video.fit.source_width, video.fit.resized_width, video.fit.resized_height) == (96, 192, 64)
    assert numbers(video.frames) == [0, 1, 2, 3, 4]


def test_transparent_parts_of_a_gif_are_white(tmp_path):
    frames = [Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 255)) for _ in range(6)]
    for i, frame in enumerate(frames):
        frame.paste((0, 0, 0, 0), (0, 0, 32 + i, HEIGHT))
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, disposal=2)
    video = load_video(str(path), num_frames=5, fps=10, **SIZE)
    assert (video.frames[:, :, :30] == 255).all()
    np.testing.assert_allclose(video.frames[:, 30, 60].astype(int), np.tile((200, 0, 0), (5, 1)), atol=6)


# Broken and hostile sources


def playlist(good):
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{good}\n#EXT-X-ENDLIST\n".encode()


def cut(good):
    data = Path(good).read_bytes()
    return data[: len(data) // 2]


def damaged(good):
    data = bytearray(Path(good).read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    return bytes(data)


def sound(good):
    path = Path(good).with_name("sound.mp4")
    command = [FFMPEG, "-v", "error", "-y", "-f", "lavfi", "-i", "sine=d=1", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.read_bytes()


def wide_gif(good):
    path = Path(good).with_name("wide.gif")
    Image.new("P", (17000, 16)).save(path)
    return path.read_bytes()


def png(good):
    path = Path(good).with_name("a.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return path.read_bytes()


BROKEN = {
    "text": (lambda _: b"not a video at all " * 9, "no sound video; it begins like something else"),
    "web page": (lambda _: b"<html>log in first</html>", "begins like a web page"),
    "image": (png, "begins like a PNG image"),
    "playlist": (playlist, "begins like a playlist"),
    "concat list": (lambda good: f"ffconcat version 1.0\nfile {good}\n".encode(), "begins like something else"),
    "only a header": (lambda good: Path(good).read_bytes()[:64], "no sound video|holds no video"),
    "cut in half": (cut, "no sound video; it begins like an MP4.*ffmpeg says"),
    "damaged inside": (damaged, "no sound video; it begins like an MP4.*ffmpeg says"),
    "sound alone": (sound, "holds no video; give a file with a video track"),
    "too wide": (wide_gif, "is 17000x16 pixels; at most 16384 a side"),
    "empty": (lambda _: b"", "is empty"),
    "null bytes": (lambda _: bytes(5000), "no sound video"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_sound_video_is_refused_with_a_reason(sources, tmp_path, name):
    make, reason = BROKEN[name]
    data = make(sources[30])
    (tmp_path / "a.mp4").write_bytes(data)
    for source in (data, str(tmp_path / "a.mp4")):
        with pytest.raises(RequestError, match=rf"^control_video: .*({reason})") as caught:
            load_video(source, num_frames=81, fps=16, **SIZE)
        assert len(str(caught.value)) < 600
        assert "wan-ray-" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["none.mp4", 5, None, "", "s4://bucket/a.mp4", "data:video/mp4;base64,=", "/dev/null"]
)
def test_what_cannot_even_be_opened_is_refused(source):
    with pytest.raises(RequestError, match=r"^control_video: "):
        load_video(source, num_frames=5, fps=16, **SIZE)


def test_a_size_that_changes_on_the_way_is_refused(tmp_path):
    parts = []
    for number, size in enumerate((96, 128)):
        source = mp4(tmp_path / f"{number}.mp4", 10, 10, np.zeros((10, 64, size, 3), np.uint8))
        parts.append(converted(source, tmp_path / f"{number}.ts", "-c", "copy"))
    both = converted("concat:" + "|".join(parts), tmp_path / "both.ts", "-c", "copy")
    with pytest.raises(RequestError, match="its size changes from 96x64 to 128x64 at frame 10"):
        load_video(both, num_frames=17, fps=10, **SIZE)


def children():
    """Processes that this one started and has not reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, name, parent = re.match(r"(\d+) \((.*)\) \w (\d+)", stat.read_text()).groups()
        except OSError:
            continue
        if "ffmpeg" in name and int(parent) == os.getpid():
            found.append(int(pid))
    return found


def test_nothing_runs_on_after_success_failure_or_a_reader_that_stops(sources, tmp_path):
    load_video(sources[60], num_frames=5, fps=16, **SIZE)
    with pytest.raises(RequestError):
        load_video(sources[10], num_frames=5, fps=16, **SIZE)
    stream = stream_frames(Path(sources[60]), what="a")
    next(stream)
    assert len(children()) == 1
    stream.close()
    assert children() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "ffmpeg-log"]


def test_an_ffmpeg_that_is_killed_is_not_the_rows_fault(sources, monkeypatch):
    stream = stream_frames(Path(sources[60]), what="control_video: 'a.mp4'")
    next(stream)
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StageError, match="ffmpeg was killed by signal 9"):
        list(stream)


def test_frames_are_the_pixels_that_read_frames_gives(sources):
    streamed = np.stack([frame.rgb for frame in stream_frames(Path(sources[24]), what="a")])
    np.testing.assert_array_equal(streamed, read_frames(sources[24]))


def test_a_picture_larger_than_the_limit_is_not_decoded(sources, monkeypatch):
    monkeypatch.setattr(frame_stream, "MAX_PICTURE_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(RequestError, match=r"ffmpeg says: .*max"):
        load_video(sources[10], num_frames=5, fps=10, **SIZE)


# Masks


def squares(num_frames, size=(HEIGHT, WIDTH)):
    """A white square on black that moves right by one pixel a frame."""
    masks = np.zeros((num_frames, *size, 3), np.uint8)
    for number, mask in enumerate(masks):
        mask[16:48, number % 60 : number % 60 + 32] = 255
    return masks


@pytest.fixture(scope="module")
def clip(sources):
    return load_video(sources[30], num_frames=21, fps=16, **SIZE)


def test_a_mask_video_goes_with_its_video_frame_by_frame_and_is_only_0_and_1(clip, tmp_path):
    mask = load_mask_video(mp4(tmp_path / "m.mp4", 60, 30, squares(60)), like=clip)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    wanted = squares(60)[clip.frame_indices, ..., 0] / 255
    assert np.mean(mask != wanted) < 0.01  # where H.264 rounds an edge


def test_a_mask_folder_goes_with_its_video_exactly(clip, tmp_path):
    for number, mask in enumerate(squares(45)):
        Image.fromarray(mask[..., 0]).save(tmp_path / f"{number}.png")
    np.testing.assert_array_equal(
        load_mask_video(str(tmp_path), like=clip), squares(45)[clip.frame_indices, ..., 0] / 255
    )


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_still_mask_holds_for_every_frame(clip, tmp_path, kind):
    Image.fromarray(squares(1)[0]).save(tmp_path / f"m.{kind}", quality=95)
    mask = load_mask_video(str(tmp_path / f"m.{kind}"), like=clip)
    assert mask.shape == (21, HEIGHT, WIDTH)
    assert (mask == mask[0]).all()
    assert np.mean(mask[0] != squares(1)[0, ..., 0] / 255) < 0.01


def test_a_mask_is_resized_and_cropped_as_its_video_without_new_values(tmp_path):
    frames = np.zeros((5, 120, 200, 3), np.uint8)
    frames[:, 30:90, 50:150] = 255
    video = load_video(mp4(tmp_path / "v.mp4", 5, 10, frames), num_frames=5, fps=10, width=64, height=48)
    Image.fromarray(frames[0]).save(tmp_path / "m.png")
    mask = load_mask_video(str(tmp_path / "m.png"), like=video)
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert np.mean(mask != (video.frames[..., 0] > 127)) < 0.02
    np.testing.assert_array_equal(fit_mask(frames[0, ..., 0], video.fit) / 255, mask[0])


def test_grays_of_a_mask_are_decided_at_half(clip, tmp_path):
    still = np.zeros((HEIGHT, WIDTH), np.uint8)
    still[:, :32], still[:, 32:64] = 127, 128
    Image.fromarray(still).save(tmp_path / "m.png")
    mask = load_mask_video(str(tmp_path / "m.png"), like=clip)
    assert (mask[..., :32] == 0).all()
    assert (mask[..., 32:64] == 1).all()
    assert (mask[..., 64:] == 0).all()


def test_a_mask_that_does_not_fit_its_video_is_refused(clip, tmp_path):
    refused = {
        "short": (mp4(tmp_path / "short.mp4", 20, 30, squares(20)), "ends after 20 frames, but frame 37 .* is used"),
        "small": (mp4(tmp_path / "small.mp4", 60, 30, squares(60)[:, :48]), "is 96x48, the video it masks 96x64"),
        "slow": (mp4(tmp_path / "slow.mp4", 60, 10, squares(60)), "at 0.200 s, the video it masks at 0.067 s"),
        "black": (mp4(tmp_path / "black.mp4", 60, 30, 0 * squares(60)), "marks nothing: no pixel of the clip is 128"),
        "ones": (mp4(tmp_path / "ones.mp4", 60, 30, squares(60) // 255), r"marks nothing: .*\(255, not 1\)"),
        "missing": (str(tmp_path / "none.mp4"), "does not exist"),
        "text": (b"no mask", "no sound video"),
    }
    for source, reason in refused.values():
        with pytest.raises(RequestError, match=f"^mask_video: .*{reason}"):
            load_mask_video(source, like=clip)
