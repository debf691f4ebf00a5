"""What clients send as pictures and videos: files made by Pillow and ffmpeg, and some made to harm."""

import io
import struct
import subprocess
import zlib
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image

from wan_ray.serving import pictures
from wan_ray.serving.api_error import ApiError
from wan_ray.serving.pictures import check_media


def saved(kind: str, *, size: tuple[int, int] = (64, 48), mode: str = "RGB", num_frames: int = 1) -> bytes:
    frames = [Image.new(mode, size, color=7 * number % 256) for number in range(num_frames)]
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": frames[1:]} if num_frames > 1 else {}
    frames[0].save(buffer, kind, **more)
    return buffer.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def video(tmp_path: Path, *, num_frames: int, size: str = "64x48", suffix: str = ".mp4") -> bytes:
    file = tmp_path / f"video{suffix}"
    source = ["-f", "lavfi", "-i", f"color=s={size}:r=25", "-frames:v", str(num_frames)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, "-threads", "1", str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return file.read_bytes()


def refusal(field: str, data: bytes) -> str:
    with pytest.raises(ApiError) as caught:
        check_media(field, data)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_media", field)
    return caught.value.message


@pytest.mark.parametrize("field", ["image", "last_image", "reference_images", "vace.reference_masks", "vace.first"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_still_image_is_taken_where_one_belongs(field: str, kind: str) -> None:
    check_media(field, saved(kind))


@pytest.mark.parametrize("field", ["control_video", "mask_video", "vace.last"])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_a_video_is_taken_where_one_belongs(field: str, suffix: str, tmp_path: Path) -> None:
    check_media(field, video(tmp_path, num_frames=5, suffix=suffix))


def test_a_video_is_no_image_and_an_image_no_video(tmp_path: Path) -> None:
    assert "no image" in refusal("image", video(tmp_path, num_frames=5))
    assert "no sound video" in refusal("control_video", saved("PNG"))


@pytest.mark.parametrize("field", ["image", "reference_images", "mask_video", "vace.first"])
@pytest.mark.parametrize("size", [(50000, 50000), (16384, 16384), (2**31 - 1, 1), (6400, 6400)])
def test_a_picture_larger_than_is_decoded_is_refused_by_its_header(field: str, size: tuple[int, int]) -> None:
    said = refusal(field, claims(*size))
    assert f"{size[0]}x{size[1]}" in said or "too large" in said


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_of_many_frames_is_no_still_image(kind: str) -> None:
    assert "several pictures" in refusal("image", saved(kind, num_frames=300))


def test_a_video_of_more_frames_than_are_decoded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_VIDEO_PIXELS", 64 * 48 * 100 + 7)
    for suffix in (".mp4", ".gif", ".webm"):
        check_media("control_video", video(tmp_path, num_frames=100, suffix=suffix))
        said = refusal("control_video", video(tmp_path, num_frames=101, suffix=suffix))
        assert "more than 100 frames of 64x48" in said


def test_a_small_file_of_much_to_decode_is_refused_without_decoding_it(tmp_path: Path) -> None:
    (tmp_path / "once.mp4").write_bytes(video(tmp_path, num_frames=6, size="4096x2176"))
    again = ["-stream_loop", "99", "-i", str(tmp_path / "once.mp4"), "-c", "copy", str(tmp_path / "long.mp4")]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *again], check=True, stdin=subprocess.DEVNULL)
    data = (tmp_path / "long.mp4").read_bytes()
    assert len(data) < 2_000_000  # 600 frames, 5.3 thousand million pixels
    assert "more than 560 frames of 4096x2176" in refusal("control_video", data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"/etc/passwd",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n",
        b"push graphic-context\nimage over 0,0 0,0 'http://127.0.0.1/'\npop graphic-context\n",
    ],
)
@pytest.mark.parametrize("field", ["image", "control_video", "vace.first"])
def test_formats_that_name_other_files_or_run_programs_are_not_opened(field: str, data: bytes) -> None:
    said = refusal(field, data)
    assert "root:" not in said


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    data = video(tmp_path, num_frames=50)
    refusal("control_video", data[: len(data) // 2])
    refusal("image", saved("PNG")[:20])
