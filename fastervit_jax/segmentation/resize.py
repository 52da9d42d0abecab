"""Bilinear resizing and adaptive pooling of maps, as products with small matrices.

Both are linear in rows and in columns. A matrix product is what accelerators do best, its gradient
is one too, and the matrices can be arguments of a compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np


def bilinear_matrix(size: int, new_size: int) -> np.ndarray:
    """Weights of the positions along an axis that is resized, float64 `[new_size, size]`.

    As `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`: no antialiasing.
    """
    source = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0)
    lower = np.minimum(np.floor(source).astype(int), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    matrix = np.zeros((new_size, size))
    rows = np.arange(new_size)
    np.add.at(matrix, (rows, lower), 1 - (source - lower))
    np.add.at(matrix, (rows, upper), source - lower)
    return matrix


def pooling_matrix(size: int, bins: int) -> np.ndarray:
    """Weights of the positions along an axis that is averaged in bins, float64 `[bins, size]`.

    As `torch.nn.AdaptiveAvgPool2d`: bins may overlap by one position.
    """
    matrix = np.zeros((bins, size))
    for index in range(bins):
        start, stop = index * size // bins, -(-(index + 1) * size // bins)
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix


def apply_matrices(
    maps: jax.Array, rows: jax.typing.ArrayLike, columns: jax.typing.ArrayLike
) -> jax.Array:
    """[N, H, W, C], [H', H] and [W', W] → [N, H', W', C], in the type of the maps."""
    rows, columns = jnp.asarray(rows, maps.dtype), jnp.asarray(columns, maps.dtype)
    # Accelerators would round float32 to fewer bits.
    precision = "highest" if maps.dtype == jnp.float32 else None
    maps = jnp.einsum("ah,nhwc->nawc", rows, maps, precision=precision)
    return jnp.einsum("bw,nawc->nabc", columns, maps, precision=precision)


def resize(maps: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Resizes maps [N, H, W, C] to `size`, (height, width), bilinearly."""
    height, width = maps.shape[1:3]
    if (height, width) == tuple(size):
        return maps
    return apply_matrices(maps, bilinear_matrix(height, size[0]), bilinear_matrix(width, size[1]))


def adaptive_pool(maps: jax.Array, bins: int) -> jax.Array:
    """Averages maps [N, H, W, C] in bins × bins parts: [N, bins, bins, C]."""
    height, width = maps.shape[1:3]
    return apply_matrices(maps, pooling_matrix(height, bins), pooling_matrix(width, bins))
