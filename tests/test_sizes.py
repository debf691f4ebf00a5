"""The released image formula is held against the release's own answers in tests/parity."""

import pytest

from wan_ray.errors import RequestError
from wan_ray.sizes import image_to_video_size, released_vace_shape

SD, HD = 832 * 480, 1280 * 720


def test_an_image_too_narrow_for_a_video_is_refused():
    with pytest.raises(RequestError, match=r"image of 2x9000 gives a video of 0x\d+, and each side takes at least 16"):
        image_to_video_size(2, 9000, SD)


@pytest.mark.parametrize(
    ("source", "num_source_frames", "max_pixels", "shape"),
    [  # as the released code was seen to give
        ((1920, 1080), 300, HD, (1280, 720, 81)),
        ((832, 480), 80, SD, (832, 480, 77)),
        ((1024, 1024), 300, SD, (640, 624, 81)),
        ((640, 360), 81, SD, (640, 352, 81)),
        ((640, 352), 1000, SD, (640, 352, 145)),
        ((640, 352), 1000, HD, (640, 352, 337)),
    ],
)
def test_a_source_decides_a_released_clip_s_shape(source, num_source_frames, max_pixels, shape):
    assert released_vace_shape(*source, num_source_frames, max_pixels) == shape


@pytest.mark.parametrize("source", [(15, 400), (16, 16000)])
def test_a_source_of_no_size_is_refused(source):
    with pytest.raises(RequestError, match=f"a video of {source[0]}x{source[1]} "):
        released_vace_shape(*source, 81, 256)
