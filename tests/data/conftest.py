"""Small data sets for the tests of the data layer."""

from pathlib import Path

import pytest

from tests.data.numbered import NUM_CLASSES, NUM_IMAGES, numbered_png


@pytest.fixture(scope="session")
def numbered_folder(tmp_path_factory) -> Path:
    """101 numbered images in 3 classes; number = place in the source's order."""
    root = tmp_path_factory.mktemp("numbered")
    for number in range(NUM_IMAGES):
        folder = root / f"class_{number * NUM_CLASSES // NUM_IMAGES}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(numbered_png(number))
    return root
