"""Bilinear resizing and adaptive pooling of maps, as products with small matrices.

Both are linear in rows and in columns. A matrix product is what accelerators do best, its gradient
is one too, and the matrices can be arguments of a compiled program.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fastervit_jax.models import layouts

_LAYOUT = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


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
    precision = _precision(maps)
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


def convolve_resized(maps: list[jax.Array], size: tuple[int, ...], kernel: jax.Array) -> jax.Array:
    """The 3×3 convolution of maps that are resized to `size` and concatenated, zeros around them.

    The large maps are never made. Convolution and resizing are both linear, so a small map is
    multiplied by the kernel at its own size. Then the products of the kernel's nine places are
    resized, shifted and added, by two products with small matrices. In UperNet at 512 × 512, this
    takes 2.7 times fewer multiply-adds.

    Args:
        maps: each [N, h, w, C], of any size and width, floating point.
        size: the height H and the width W.
        kernel: [3, 3, sum of all C, features], in the type of the maps.

    Returns:
        [N, H, W, features], in the type of the maps.
    """
    whole: list[jax.Array] = []
    small, rows = [], []
    kernels = jnp.split(kernel, np.cumsum([x.shape[-1] for x in maps])[:-1], axis=2)
    for x, own in zip(maps, kernels, strict=True):
        n, height, width, _ = x.shape
        if (height, width) == tuple(size):
            whole.append(layouts.convolution(x, own, (1, 1), ((1, 1), (1, 1)), **_LAYOUT))
            continue
        products = jnp.einsum("nhwc,ijco->nihwjo", x, own)
        columns = jnp.asarray(_shifted(bilinear_matrix(width, size[1])), x.dtype)
        resized = jnp.einsum("jbw,nihwjo->nihbo", columns, products, precision=_precision(x))
        small.append(resized.reshape(n, 3 * height, size[1], -1))
        rows.append(np.concatenate(_shifted(bilinear_matrix(height, size[0])), axis=1))
    if small:
        resized = jnp.concatenate(small, axis=1)
        matrix = jnp.asarray(np.concatenate(rows, axis=1), resized.dtype)
        whole.append(jnp.einsum("ah,nhbo->nabo", matrix, resized, precision=_precision(resized)))
    return sum(whole[1:], start=whole[0])


def _shifted(matrix: np.ndarray) -> np.ndarray:
    """The matrix of each row of a 3×3 kernel, which meets the map one position further on."""
    padded = np.pad(matrix, ((1, 1), (0, 0)))
    return np.stack([padded[start : start + len(matrix)] for start in range(3)])


def _precision(x: jax.Array) -> str | None:
    """Accelerators would round float32 to fewer bits."""
    return "highest" if x.dtype == jnp.float32 else None
