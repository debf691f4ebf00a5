import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from wan_ray.errors import RequestError
from wan_ray.media.image import MAX_PICTURE_SIDE, load_image

WIDTH, HEIGHT = 48, 32


def picture():
    """Smooth color, so that lossy files stay near it, unlike in every quarter."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 5, y * 7, 255 - x * 3 - y], axis=-1).astype(np.uint8)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *, bits, color, rows):
    """A PNG file of raw rows, each led by its filter byte."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_files_come_back_exactly(kind):
    image = Image.fromarray(picture()).quantize(64) if kind == "GIF" else Image.fromarray(picture())
    found = load_image(saved(image, kind))
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 98, "subsampling": 0}), ("WEBP", {"quality": 98})])
def test_lossy_files_come_back_nearly(kind, options):
    found = load_image(saved(Image.fromarray(picture()), kind, **options))
    assert np.abs(found.astype(int) - picture()).mean() < 2


def test_paths_data_urls_and_bytes_give_the_same_picture(tmp_path):
    data = saved(Image.fromarray(picture()), "PNG")
    (tmp_path / "a.dat").write_bytes(data)
    for source in (data, str(tmp_path / "a.dat"), "data:text/plain;base64," + base64.b64encode(data).decode()):
        np.testing.assert_array_equal(load_image(source), picture())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_picture_is_turned_upright_as_its_exif_tag_says(kind, orientation, turned):
    # np.rot90 turns against the clock; orientation 6 asks for a quarter with it.
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    found = load_image(saved(Image.fromarray(picture()), kind, exif=exif, **lossless))
    wanted = np.rot90(picture(), turned)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 2


def test_a_mirrored_picture_is_mirrored_back():
    exif = Image.Exif()
    exif[0x0112] = 2
    np.testing.assert_array_equal(load_image(saved(Image.fromarray(picture()), "PNG", exif=exif)), picture()[:, ::-1])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_white_and_half_of_it_halfway(kind):
    rgba = np.dstack([np.full((HEIGHT, WIDTH, 3), (200, 0, 100), np.uint8), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[:8, :, 3], rgba[8:16, :, 3] = 0, 128
    found = load_image(saved(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(found[0, 0], (255, 255, 255))
    np.testing.assert_allclose(found[10, 0], (227, 127, 177), atol=1)
    np.testing.assert_array_equal(found[20, 0], (200, 0, 100))


def test_a_transparent_color_of_a_palette_and_of_a_plain_picture_is_white():
    marked = picture()
    marked[:8] = (1, 2, 3)
    palette = Image.fromarray(marked).quantize(16)
    hole = palette.getpixel((0, 0))
    for data in (
        saved(palette, "PNG", transparency=hole),
        saved(Image.fromarray(marked), "PNG", transparency=(1, 2, 3)),
    ):
        found = load_image(data)
        assert (found[:8] == 255).all()
        assert not (found[16:] == 255).all()


def test_gray_with_alpha_is_flattened_too():
    data = saved(Image.merge("LA", [Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 0)]), "PNG")
    assert (load_image(data) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(picture())
    converted = image.convert("RGB").convert(mode) if mode != "LAB" else image.quantize(64)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    found = load_image(saved(converted, kind, **({"quality": 98} if kind == "JPEG" else {})))
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found.astype(int) - np.asarray(converted.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 40000, 65278, 65535]], np.uint16)
    found = load_image(saved(Image.fromarray(values), kind))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 128, 156, 254, 255]  # v / 257, rounded
    assert (found == found[..., :1]).all()


def test_sixteen_bit_color_is_scaled_not_clipped():
    pixels = np.array([0, 32896, 65535, 300, 65535, 25700], ">u2").tobytes()
    found = load_image(png(2, 1, bits=16, color=2, rows=b"\0" + pixels))
    np.testing.assert_allclose(found[0].astype(int), [(0, 128, 255), (1, 255, 100)], atol=1)


def test_a_phones_jpeg_with_a_second_picture_behind_it_shows_the_first():
    first = Image.fromarray(picture())
    data = saved(first, "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=98)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(load_image(data).astype(int) - picture()).mean() < 2


def tall_png():
    return png(1, MAX_PICTURE_SIDE + 1, bits=8, color=0, rows=b"\0\0" * (MAX_PICTURE_SIDE + 1))


def bomb(width, height):
    """A file of a few hundred bytes that says it is that large."""
    return png(width, height, bits=8, color=2, rows=b"\0" * 100)


PNG = saved(Image.fromarray(picture()), "PNG")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
BROKEN = {
    "text": (b"hello, this is no image", "no image that can be read .*something else"),
    "web page": (b"<!DOCTYPE html><html>log in</html>", "begins like a web page"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(100), "begins like an MP4"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "no image that can be read"),
    "only a header": (PNG[:20], "no image that can be read .*a PNG image"),
    "truncated png": (saved(NOISE, "PNG")[:5000], "damaged PNG image"),
    "truncated jpeg": (saved(NOISE, "JPEG")[:1500], "damaged JPEG image: .*truncated"),
    "truncated webp": (saved(NOISE, "WEBP")[:1500], "begins like a WebP image"),
    "bad checksum": (PNG.replace(b"IDAT", b"IDAU", 1), "PNG image"),
    "too high": (tall_png(), rf"1x{MAX_PICTURE_SIDE + 1} pixels; at most {MAX_PICTURE_SIDE} a side"),
    "too large": (bomb(11000, 10000), "11000x10000 pixels; at most 16384 a side and 100000000 in all"),
    "bomb": (bomb(60000, 60000), "too large a picture to decode: .*3600000000 pixels"),
    "animation": (saved(NOISE, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64))]), "several pictures"),
    "floats": (saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32-bit samples"),
    "32-bit": (saved(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"), "32-bit samples"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_sound_picture_is_refused_with_a_reason_and_never_half_decoded(name):
    data, reason = BROKEN[name]
    with pytest.raises(RequestError, match=rf"^last_image: <\d+ bytes>.*(?s:{reason})"):
        load_image(data, what="last_image")


def test_the_largest_side_is_still_decoded():
    side = png(1, MAX_PICTURE_SIDE, bits=8, color=0, rows=b"\0\7" * MAX_PICTURE_SIDE)
    assert load_image(side).shape == (MAX_PICTURE_SIDE, 1, 3)


def test_a_size_limit_on_the_file_is_kept(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(RequestError, match=r"a\.png' is \d+ bytes, more than 10 bytes"):
        load_image(str(tmp_path / "a.png"), max_bytes=10)
