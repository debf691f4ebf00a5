import base64
import io
import struct
import time
import uuid
import zlib

import fsspec
import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import RequestError, StorageError
from wan_ray.media import check as check_module
from wan_ray.media import source as source_module
from wan_ray.media.check import MediaCheck
from wan_ray.media.video import encode_mp4

WIDTH, HEIGHT = 64, 48


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def bomb():
    """A PNG of a hundred bytes that says it is 60000x60000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def data_url(data):
    return "data:;base64," + base64.b64encode(data).decode()


@pytest.fixture
def memory_url():
    """A folder of its own in fsspec's memory filesystem, which stands for a bucket."""
    folder = f"memory://{uuid.uuid4().hex}"
    yield folder
    fsspec.filesystem("memory").rm(folder.removeprefix("memory:/"), recursive=True)


def put(url, data):
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twenty frames of noise as MP4, a megabyte or so, with the index in front."""
    path = tmp_path_factory.mktemp("clip") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (20, 128, 192, 3), np.uint8)
    encode_mp4([frames], path=path, width=192, height=128, fps=16, crf=10, preset="ultrafast", threads=1)
    return path.read_bytes()


def index_last(data):
    """The MP4 with its index, which tells where the frames are, behind them."""
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append(data[at : at + size])
        at += size
    moov = next(box for box in boxes if box[4:8] == b"moov")
    others = [box for box in boxes if box[4:8] != b"moov"]
    # Offsets of frames in the table "stco" count from the file's beginning, and move by what stood before.
    start = moov.index(b"stco") + 12
    (count,) = struct.unpack(">I", moov[start - 4 : start])
    offsets = struct.unpack(f">{count}I", moov[start : start + 4 * count])
    moved = struct.pack(f">{count}I", *(offset - len(moov) for offset in offsets))
    return b"".join(others) + moov[:start] + moved + moov[start + 4 * count :]


def test_sound_media_of_every_field_pass(tmp_path, memory_url, clip):
    picture().save(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    for number in range(3):
        picture().save(tmp_path / "folder" / f"{number}.jpg")
    image, video = str(tmp_path / "a.png"), put(f"{memory_url}/v.mp4", clip)
    check = MediaCheck()
    check({"image": [image], "last_image": [data_url(saved(picture(), "WEBP"))]})
    check({"control_video": [video], "mask_video": [image], "reference_images": [image, image]})
    check({"control_video": [str(tmp_path / "folder")], "mask_video": [data_url(clip)]})
    check({"first": [image], "last": [video], "reference_masks": [image]})
    check({})


PNG = saved(picture(), "PNG")
GIF = saved(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))])
BROKEN = {
    "missing": ("image", None, r"image: '.*input' does not exist"),
    "empty": ("last_image", b"", "last_image: .* is empty"),
    "text": ("image", b"hello", "image: .* no image that can be read .*something else"),
    "web page": ("image", b"<!DOCTYPE html>", "begins like a web page"),
    "header cut": ("image", PNG[:20], "no image that can be read"),
    "bomb": ("reference_images", bomb(), "reference_images: .*too large a picture to decode"),
    "animation": ("image", GIF, "several pictures"),
    "a video for an image": ("image", "clip", "begins like an MP4"),
    "an image for a video": ("control_video", PNG, "control_video: .*no sound video; it begins like a PNG image"),
    "text for a video": ("control_video", b"hello", "no sound video"),
    "video cut in its index": ("control_video", "cut", "no sound video; it begins like an MP4"),
    "text for a mask": ("mask_video", b"hello", "mask_video: .*no sound video"),
    "a broken still mask": ("mask_video", PNG[:20], "mask_video: .*no image that can be read"),
    "a broken first frame": ("first", PNG[:20], r"vace\.first: .*no image that can be read"),
    "a broken reference mask": ("reference_masks", b"hello", r"vace\.reference_masks: .*no image"),
}


CASES = [(name, place) for name in BROKEN for place in ("file", "bucket", "data") if BROKEN[name][1] or place != "data"]


@pytest.mark.parametrize(("name", "place"), CASES)
def test_what_cannot_be_used_is_told_with_its_field_and_cause(tmp_path, memory_url, clip, name, place):
    field, content, reason = BROKEN[name]
    content = {"clip": clip, "cut": clip[:400]}.get(content, content) if isinstance(content, str) else content
    put(f"{memory_url}/other", b"1")
    if place == "data":
        source = data_url(content)
    else:
        source = f"{memory_url}/input" if place == "bucket" else str(tmp_path / "input")
        if content is not None:
            put(source, content)
    with pytest.raises(RequestError, match=reason) as caught:
        MediaCheck()({field: [source]})
    assert "wan-ray-" not in str(caught.value)  # what a copy of ours is called


def test_a_folder_is_known_by_its_first_image(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(RequestError, match="holds no images"):
        MediaCheck()({"control_video": [str(folder)]})
    (folder / "0.png").write_bytes(PNG[:200])
    with pytest.raises(RequestError, match=r"frames': '0\.png' is a damaged PNG"):
        MediaCheck()({"mask_video": [str(folder)]})
    with pytest.raises(RequestError, match="is a folder; give one file"):
        MediaCheck()({"image": [str(folder)]})


def test_a_source_that_rows_share_is_opened_once_and_data_in_rows_are_not_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(b"hello")
    check = MediaCheck()
    for _ in range(50):
        check({"image": [str(tmp_path / "a.png")]})
        with pytest.raises(RequestError, match=r"b\.png' is no image"):
            check({"image": [str(tmp_path / "b.png")]})
    assert check.num_opened == 2
    for _ in range(3):
        check({"image": [data_url(PNG)]})
    assert check.num_opened == 5
    assert len(check._found) == 2


def test_what_is_remembered_stays_within_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "_MAX_KEPT", 4)
    check = MediaCheck()
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(PNG)
        check({"image": [str(tmp_path / f"{number}.png")]})
        check({"image": [str(tmp_path / "0.png")]})
    assert len(check._found) == 4
    assert check.num_opened == 10


def test_a_store_that_fails_is_no_verdict_and_is_not_remembered(memory_url, monkeypatch):
    def broken(*_, **__):
        raise ConnectionResetError(104, "reset by peer")

    url, check = put(f"{memory_url}/a.png", PNG), MediaCheck()
    with monkeypatch.context() as patched:
        patched.setattr("fsspec.implementations.memory.MemoryFileSystem.open", broken)
        with pytest.raises(StorageError, match="reset by peer"):
            check({"image": [url]})
    check({"image": [url]})


@pytest.fixture
def bytes_read(monkeypatch):
    """Counts what is read of memory:// files."""
    counted = []
    real = fsspec.implementations.memory.MemoryFile.read

    def read(self, *args):
        data = real(self, *args)
        counted.append(len(data))
        return data

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", read)
    return counted


@pytest.mark.parametrize("order", [bytes, index_last], ids=["index first", "index last"])
def test_of_a_large_remote_video_both_ends_are_read(memory_url, clip, bytes_read, monkeypatch, order):
    monkeypatch.setattr(source_module, "_END_BYTES", len(clip) // 6)
    MediaCheck()({"control_video": [put(f"{memory_url}/v.mp4", order(clip))]})
    assert 0 < sum(bytes_read) <= len(clip) // 3


def test_a_large_remote_video_that_seems_broken_is_judged_as_a_whole(memory_url, clip, bytes_read, monkeypatch):
    monkeypatch.setattr(source_module, "_END_BYTES", 300)
    MediaCheck()({"control_video": [put(f"{memory_url}/v.mp4", clip)]})
    assert sum(bytes_read) > len(clip)
    with pytest.raises(RequestError, match="no sound video"):
        MediaCheck()({"control_video": [put(f"{memory_url}/w.mp4", bytes(len(clip)))]})


def test_of_a_large_image_the_beginning_is_read(memory_url, bytes_read, monkeypatch):
    monkeypatch.setattr(source_module, "HEAD_BYTES", 500)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    MediaCheck()({"image": [put(f"{memory_url}/a.png", saved(noise, "PNG"))]})
    assert sum(bytes_read) == 500
    # A TIFF's header may stand behind the pixels.
    MediaCheck()({"image": [put(f"{memory_url}/a.tif", saved(noise, "TIFF"))]})


def test_a_thousand_images_are_checked_in_seconds(tmp_path, record_property):
    for number in range(1000):
        (tmp_path / f"{number}.png").write_bytes(PNG)
    check, started = MediaCheck(), time.process_time()
    for number in range(1000):
        check({"image": [str(tmp_path / f"{number}.png")]})
    seconds = time.process_time() - started
    print(f"checked {1000 / seconds:.0f} images/s")  # noqa: T201
    assert seconds < 5  # 0.5 to 1 on one idle core
