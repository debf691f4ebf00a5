import io

import numpy as np
from PIL import Image

from wan_ray.media.image import encode_png


def test_a_png_holds_the_exact_pixels_and_nothing_else():
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data = encode_png(frame)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(image), frame)
    assert image.info == {}
    assert data == encode_png(frame.copy())
