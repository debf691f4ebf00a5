"""Sizes that a clip takes from its source, as the release reckons them: plain arithmetic, no pixels."""

import math

from wan_ray.errors import RequestError

_STEP = 16  # pixels of one token, each way
_LATENT_STEP = 8
_TRAINED_LATENT_FRAMES = 21  # 81 frames


def image_to_video_size(image_width: int, image_height: int, max_pixels: int) -> tuple[int, int]:
    """Width and height of an image's video: its aspect, at most max_pixels, multiples of 16.

    RequestError when a side would vanish. Wan2.1 image2video.py (9737cba).
    """
    ratio = image_height / image_width
    # Floor divisions of floats in the released order: 832x480 at 480P gives 832x464, the root of 480^2 falling short.
    height, width = (
        round(math.sqrt(area) // _LATENT_STEP // 2 * 2) * _LATENT_STEP
        for area in (max_pixels * ratio, max_pixels / ratio)
    )
    if not width or not height:
        raise RequestError(
            f"an image of {image_width}x{image_height} gives a video of {width}x{height}, and each side takes at least "
            f"{_STEP} pixels; crop the image to a less extreme aspect"
        )
    return width, height


def released_vace_shape(
    source_width: int, source_height: int, num_source_frames: int, max_pixels: int
) -> tuple[int, int, int]:
    """Width, height and number of frames that the released VACE code makes of a source video, whatever a row asks.

    It has the source's aspect, is never enlarged, and a small one may give more than 81 frames. max_pixels is the area
    of the size asked for. RequestError when a side would vanish. Wan2.1 wan/utils/vace_processor.py (9737cba).
    """
    max_area = max_pixels / _STEP**2
    max_tokens = int(max_area * _TRAINED_LATENT_FRAMES)
    area = min(max_tokens, max_area, (source_height // _STEP) * (source_width // _STEP))
    if not area:
        raise RequestError(
            f"a video of {source_width}x{source_height} has a side of less than {_STEP} pixels; give a larger one"
        )
    num_latent_frames = min((num_source_frames - 1) // 4 + 1, int(max_tokens / area))
    area = min(area, int(max_tokens / num_latent_frames))
    rows = max(1, round(math.sqrt(area * (source_height / source_width))))
    columns = int(area / rows)
    if not columns:
        raise RequestError(
            f"a video of {source_width}x{source_height} leaves a clip no width at {max_pixels} pixels; crop it"
        )
    return columns * _STEP, rows * _STEP, (num_latent_frames - 1) * 4 + 1
