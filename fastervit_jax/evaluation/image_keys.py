"""Names of images: the file or record that each one is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastervit_jax.data import Source


def image_keys(source: Source, indices: np.ndarray) -> list[str]:
    """The key of each image. A source tells it only with the image's bytes, so they are read."""
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda index: source[int(index)].key, indices))
