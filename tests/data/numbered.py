"""Images that tell their number. Not in conftest.py: worker processes import it by name."""

import io

import numpy as np
from PIL import Image

NUM_IMAGES = 101  # a prime: no batch or host count divides it
NUM_CLASSES = 3


def numbered_png(number: int) -> bytes:
    """A small image that tells its number: every pixel is (number, 255 − number, 7)."""
    image = Image.new("RGB", (5, 4), (number, 255 - number, 7))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def number_in(image: np.ndarray) -> int:
    """The number a numbered image was made with, whatever was cut out of it."""
    return int(image[0, 0, 0])
