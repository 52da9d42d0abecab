"""Names of images: their files or records."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastervit_jax.data import Source


def image_keys(source: Source, indices: np.ndarray) -> list[str]:
    """Returns the key of each image. This reads the images, because a source has no other way."""
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(lambda index: source[int(index)].key, indices))
