"""Weighted sums of bilinear samples, the core of deformable attention (Zhu et al., 2021).

`sample` computes one formula on every platform. Two arrangements give the same values and the same
gradients: gathers of the four neighbors of each point, and products with matrices of bilinear
weights. Products cost as much as the map is large, but CPUs and TPUs, whose scatters are slow, do
them faster where the map is small. JAX chooses when it lowers a program (`models.layouts`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fastervit_jax.models.layouts import by_platform

DENSE_POSITIONS = 1024
"""CPU and TPU: the largest map, in positions, that is sampled by products."""

Shapes = Sequence[tuple[int, int]]
"""(height, width) of each level."""


def sample(values: jax.Array, shapes: Shapes, points: jax.Array, weights: jax.Array) -> jax.Array:
    """Samples maps at points, bilinearly, and sums the samples with weights.

    Args:
        values: the levels' positions one after the other, row by row, [N, S, heads, d].
        shapes: (height, width) of each level.
        points: (x, y) from 0 to 1 over each level, [N, Q, heads, levels, points, 2]. Centers of
            pixels are at (i + ½) / size. Outside of a map, values are zero.
        weights: [N, Q, heads, levels, points].

    Returns:
        [N, Q, heads, d], in the type of the values.
    """
    total = jnp.zeros((), values.dtype)
    start = 0
    for level, (height, width) in enumerate(shapes):
        own = values[:, start : start + height * width]
        start += height * width
        scale = jnp.asarray([width, height], points.dtype)
        pixels = points[:, :, :, level] * scale - 0.5
        total = total + _sample_level(own, (height, width), pixels, weights[:, :, :, level])
    return total


def _sample_level(values, shape: tuple[int, int], pixels, weights) -> jax.Array:
    def gathers(values, pixels, weights):
        return sample_by_gathers(values, shape, pixels, weights)

    def products(values, pixels, weights):
        return sample_by_products(values, shape, pixels, weights)

    if shape[0] * shape[1] > DENSE_POSITIONS:
        return gathers(values, pixels, weights)
    return by_platform(values, pixels, weights, default=gathers, cpu=products, tpu=products)


def sample_by_gathers(
    values: jax.Array, shape: tuple[int, int], pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """One level of `sample`, as gathers.

    Args:
        values: [N, H·W, heads, d].
        shape: (H, W).
        pixels: (x, y) in pixels, 0 at the center of the first, [N, Q, heads, points, 2].
        weights: [N, Q, heads, points].
    """
    height, width = shape
    n, queries, heads, points = weights.shape
    corner = jnp.floor(pixels)
    share = pixels - corner
    corner = corner.astype(jnp.int32)
    by_head = values.swapaxes(1, 2)  # [N, heads, H·W, d]

    total = jnp.zeros((), values.dtype)
    for right in (0, 1):
        for down in (0, 1):
            x, y = corner[..., 0] + right, corner[..., 1] + down
            part_x = share[..., 0] if right else 1 - share[..., 0]
            part_y = share[..., 1] if down else 1 - share[..., 1]
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = jnp.where(inside, weights * part_x * part_y, 0).astype(values.dtype)
            index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
            index = index.swapaxes(1, 2).reshape(n, heads, queries * points, 1)
            taken = jnp.take_along_axis(by_head, index, axis=2, mode="promise_in_bounds")
            taken = taken.reshape(n, heads, queries, points, -1)
            total = total + jnp.einsum("nhqpd,nqhp->nqhd", taken, weight)
    return total


def sample_by_products(
    values: jax.Array, shape: tuple[int, int], pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """One level of `sample`, as products with matrices. Arguments as of `sample_by_gathers`."""
    height, width = shape
    columns = _bilinear_weights(pixels[..., 0], width)  # [N, Q, heads, points, W]
    rows = _bilinear_weights(pixels[..., 1], height) * weights[..., None]
    matrix = jnp.einsum("nqhpy,nqhpx->nhqyx", rows, columns)
    matrix = matrix.reshape(*matrix.shape[:3], height * width).astype(values.dtype)
    return jnp.einsum("nhqs,nshd->nqhd", matrix, values)


def _bilinear_weights(pixels: jax.Array, size: int) -> jax.Array:
    """Weights of all positions of an axis: [...] → [..., size], with at most two above zero."""
    corner = jnp.floor(pixels)
    share = (pixels - corner)[..., None]
    distance = jnp.arange(size) - corner.astype(jnp.int32)[..., None]
    return jnp.where(distance == 0, 1 - share, 0) + jnp.where(distance == 1, share, 0)
