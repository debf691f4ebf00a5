"""Thumbnails and sprite sheets, read back by Pillow; frames say which they are (small_clips)."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_clips import HEIGHT, WIDTH, numbered, numbers, write_mp4

from wan_ray.errors import StageError
from wan_ray.media.image import encode_png
from wan_ray.media.video import encode_mp4
from wan_ray.serving.previews import spritesheet, thumbnail


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def clip(folder: Path, num_frames: int) -> bytes:
    return Path(write_mp4(folder / "clip.mp4", numbered(num_frames))).read_bytes()


def tiles(sheet: Image.Image, columns: int, rows: int) -> np.ndarray:
    pixels = np.asarray(sheet).reshape(rows, sheet.height // rows, columns, sheet.width // columns, 3)
    return pixels.swapaxes(1, 2).reshape(rows * columns, sheet.height // rows, sheet.width // columns, 3)


@pytest.mark.parametrize(("num_frames", "middle"), [(1, 0), (9, 4), (81, 40)])
def test_a_thumbnail_is_the_middle_frame_as_webp(tmp_path: Path, num_frames: int, middle: int) -> None:
    picture = opened(thumbnail(clip(tmp_path, num_frames), ".mp4"))
    assert (picture.format, picture.size) == ("WEBP", (WIDTH, HEIGHT))
    assert numbers(np.asarray(picture.convert("RGB"))[None]) == [middle]
    wanted = numbered(num_frames)[middle].astype(int)
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - wanted).mean() < 4


def test_a_spritesheet_shows_frames_from_the_first_to_the_last_row_by_row(tmp_path: Path) -> None:
    picture = opened(spritesheet(clip(tmp_path, 81), ".mp4"))
    assert (picture.format, picture.size) == ("JPEG", (5 * WIDTH, 5 * HEIGHT))
    # 80 / 24 frames apart, to the nearest.
    wanted = [0, 3, 7, 10, 13, 17, 20, 23, 27, 30, 33, 37, 40, 43, 47, 50, 53, 57, 60, 63, 67, 70, 73, 77, 80]
    assert numbers(tiles(picture, 5, 5)) == wanted


def test_a_short_clip_shows_each_frame_once_and_leaves_the_other_cells_black(tmp_path: Path) -> None:
    found = tiles(opened(spritesheet(clip(tmp_path, 5), ".mp4")), 3, 2)
    assert numbers(found[:5]) == [0, 1, 2, 3, 4]
    assert found[5][8:-8, 8:-8].max() < 8


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (480, 832)])
def test_large_clips_are_made_smaller_in_their_own_shape(tmp_path: Path, width: int, height: int) -> None:
    frames = np.full((5, height, width, 3), 120, np.uint8)
    path = tmp_path / "large.mp4"
    encode_mp4([frames], path=path, width=width, height=height, fps=16, crf=20, preset="ultrafast", threads=1)
    picture, sheet = (opened(make(path.read_bytes(), ".mp4")) for make in (thumbnail, spritesheet))
    assert max(picture.size) == 512
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)
    assert max(sheet.width / 3, sheet.height / 2) == 192


def test_an_image_is_a_clip_of_one_frame() -> None:
    frame = numbered(8)[7]
    picture, sheet = (opened(make(encode_png(frame), ".png")) for make in (thumbnail, spritesheet))
    assert (picture.format, sheet.format) == ("WEBP", "JPEG")
    for found in (picture, sheet):
        assert numbers(np.asarray(found.convert("RGB"))[None]) == [7]


def test_a_damaged_clip_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="ffmpeg"):
        thumbnail(b"no video at all", ".mp4")
    whole = clip(tmp_path, 81)
    with pytest.raises(StageError):
        spritesheet(whole[: len(whole) // 2], ".mp4")
