"""Folders of real photographs, a folder a class: pieces of the bundled ones, saved as JPEG."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.photographs import encode, photographs


def pieces(seed: int = 0) -> Iterator[Image.Image]:
    """Endless pieces of the photographs, of many sizes and aspects, 90 to 330 pixels a side."""
    rng = np.random.default_rng(seed)
    photos = list(photographs().values())
    while True:
        photo = photos[rng.integers(len(photos))]
        width, height = (int(side) for side in rng.integers(90, min(330, *photo.size), 2))
        left = int(rng.integers(photo.width - width))
        top = int(rng.integers(photo.height - height))
        yield photo.crop((left, top, left + width, top + height))


def write_folder(root: Path, classes: Sequence[str], images_per_class: int, seed: int = 0) -> Path:
    """Writes `root/CLASS/NUMBER.JPEG`."""
    images = pieces(seed)
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(images_per_class):
            data = encode(next(images), "JPEG", quality=90)
            (folder / f"{number:03d}.JPEG").write_bytes(data)
    return root
