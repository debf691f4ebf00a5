"""Still images: one frame to PNG bytes."""

import io

import numpy as np
from PIL import Image


def encode_png(frame: np.ndarray) -> bytes:
    """The frame, uint8 [H,W,3], as PNG without any metadata; the same frame always gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG")
    return buffer.getvalue()
