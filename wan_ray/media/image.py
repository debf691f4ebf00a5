"""Still images: any file a row names to one upright RGB frame, and one frame to PNG bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from wan_ray.errors import RequestError
from wan_ray.media.source import MAX_IMAGE_BYTES, likeness, name_of, read_head, read_source

MAX_PICTURE_SIDE = 16384
MAX_PICTURE_PIXELS = 100_000_000
# Pillow knows more, some of which run other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_IN_WORDS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
# What Pillow's readers raise on broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error)


def encode_png(frame: np.ndarray) -> bytes:
    """The frame, uint8 [H,W,3], as PNG without any metadata; the same frame always gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return buffer.getvalue()


def small_png(frame: np.ndarray, *, max_pixels: int) -> bytes:
    """The frame, uint8 [H,W,3], as a PNG of at most so many pixels, its aspect kept."""
    height, width = frame.shape[:2]
    scale = (max_pixels / (height * width)) ** 0.5
    if scale < 1:
        size = max(1, int(width * scale)), max(1, int(height * scale))
        frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
    return encode_png(frame)


def load_image(source: str | bytes, *, what: str = "image", max_bytes: int = MAX_IMAGE_BYTES) -> np.ndarray:
    """The picture as it is meant to be seen, uint8 [H,W,3]: turned by its EXIF tag, on white where transparent.

    16 bits are scaled to 8; color profiles are not applied. RequestError for what read_source refuses, for what is no
    single image, for a broken one, and for more than MAX_PICTURE_SIDE or MAX_PICTURE_PIXELS, before it is decoded.
    """
    data = read_source(source, what=what, max_bytes=max_bytes)
    return decode_image(data, what=f"{what}: {name_of(source)}")


def check_image(source: str | bytes, *, what: str = "image", max_bytes: int = MAX_IMAGE_BYTES) -> None:
    """RequestError for what load_image refuses, as far as its header tells; no pixel is decoded."""
    head, is_whole = read_head(source, what=what, max_bytes=max_bytes)
    name = f"{what}: {name_of(source)}"
    try:
        _opened(head, name)
    except RequestError:
        if is_whole:
            raise
        # The header may be longer, or stand at the end.
        _opened(read_source(source, what=what, max_bytes=max_bytes), name)


def picture_size(data: bytes, *, what: str) -> tuple[int, int]:
    """Width and height that an image file's header states; RequestError as decode_image, no pixel is decoded."""
    return _opened(data, what).size


def decode_image(data: bytes, *, what: str) -> np.ndarray:
    """As load_image, of an image file's bytes; `what` names the file in messages."""
    image = _opened(data, what)
    kind = image.format
    try:
        return _as_rgb(ImageOps.exif_transpose(image))
    except _BROKEN as error:
        raise RequestError(f"{what} is a damaged {kind} image: {error}; save it again") from error


def check_picture_size(width: int, height: int, *, what: str) -> None:
    """RequestError when a picture of that size is more than this package decodes."""
    if max(width, height) > MAX_PICTURE_SIDE or width * height > MAX_PICTURE_PIXELS:
        raise RequestError(
            f"{what} is {width}x{height} pixels; at most {MAX_PICTURE_SIDE} a side and {MAX_PICTURE_PIXELS} in all "
            "are decoded: make it smaller"
        )


def _opened(data: bytes, what: str) -> Image.Image:
    """The image with its header read and judged, and its pixels not yet decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        # MPO is a phone's JPEG with more pictures behind it, of which the first is the one to see.
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Image.DecompressionBombError as error:
        raise RequestError(f"{what} is too large a picture to decode: {error}; make it smaller") from error
    except _BROKEN as error:
        raise RequestError(
            f"{what} is no image that can be read (it begins like {likeness(data)}); give a sound {_IN_WORDS} file"
        ) from error
    check_picture_size(image.width, image.height, what=what)
    if animated:
        raise RequestError(f"{what} holds several pictures; give a still image")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise RequestError(f"{what} has 32-bit samples, whose range is not known; save it with 8 or 16 bits")
    return image


def _as_rgb(image: Image.Image) -> np.ndarray:
    # Pillow 10 opened 16-bit gray PNGs as "I"; to "L" it clips both.
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))
