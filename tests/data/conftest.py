"""Small data sets for the tests of the data layer."""

import io
from pathlib import Path

import numpy as np
import pytest
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


@pytest.fixture(scope="session")
def numbered_folder(tmp_path_factory) -> Path:
    """101 numbered images in 3 classes; number = place in the source's order."""
    root = tmp_path_factory.mktemp("numbered")
    for number in range(NUM_IMAGES):
        folder = root / f"class_{number * NUM_CLASSES // NUM_IMAGES}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(numbered_png(number))
    return root
