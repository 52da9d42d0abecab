"""Weighted sums of bilinear samples, the core of deformable attention (Zhu et al., 2021).

`sample` computes one formula on every platform. Three arrangements give the same values and the
same gradients, and JAX chooses when it lowers a program (`models.layouts`):

- gathers of the four neighbors of each point, and products with their weights;
- on CPUs: a loop over the neighbors;
- on TPUs, whose gathers and scatters are slow, for maps that are small: a product with a matrix of
  weights, itself the product of the weights along rows and columns.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fastervit_jax.models.layouts import by_platform

DENSE_TOKENS = 1024
"""TPU: the most tokens of a level that is sampled by a product with a matrix."""

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
    sizes = jnp.asarray([(width, height) for height, width in shapes], points.dtype)
    pixels = points * sizes[:, None] - 0.5

    def gathers(values, pixels, weights):
        return sample_by_gathers(values, shapes, pixels, weights)

    def levels(values, pixels, weights):
        return sample_by_levels(values, shapes, pixels, weights)

    def in_turn(values, pixels, weights):
        return sample_in_turn(values, shapes, pixels, weights)

    return by_platform(values, pixels, weights, default=gathers, cpu=in_turn, tpu=levels)


def sample_by_gathers(
    values: jax.Array, shapes: Shapes, pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """`sample`, as a gather of the neighbors of all points.

    Args:
        values: [N, S, heads, d].
        shapes: (height, width) of each level.
        pixels: (x, y) in pixels, 0 at the center of the first, [N, Q, heads, levels, points, 2].
        weights: [N, Q, heads, levels, points].
    """
    index, weights = neighbors(shapes, pixels, weights)
    taken = _take(values.swapaxes(1, 2), index)
    return jnp.einsum("nhqkd,nhqk->nqhd", taken, weights.astype(values.dtype))


def sample_in_turn(
    values: jax.Array, shapes: Shapes, pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """`sample`, neighbor by neighbor. Arguments as of `sample_by_gathers`.

    For `sample_by_gathers`, XLA for CPU finds each neighbor again for each channel, and stores what
    it gathers. A loop that adds four neighbors at a time takes a seventh of the time.
    """
    index, weights = neighbors(shapes, pixels, weights)
    return _sum_neighbors(values.swapaxes(1, 2), index, weights).swapaxes(1, 2)


@jax.custom_vjp
def _sum_neighbors(values: jax.Array, index: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums values [N, heads, S, d] at indices [N, heads, Q, K] with weights: [N, heads, Q, d]."""

    def add(total, four):
        for at, weight in zip(*(jnp.split(array, 4, axis=-1) for array in four), strict=True):
            total += weight * _take(values, at)[:, :, :, 0]
        return total, None

    start = jnp.zeros((*index.shape[:3], values.shape[-1]), weights.dtype)
    total, _ = jax.lax.scan(add, start, (_in_groups(index, 4), _in_groups(weights, 4)))
    return total.astype(values.dtype)


def _sum_neighbors_backward(saved, gradient):
    values, index, weights = saved
    add_at = jax.vmap(jax.vmap(lambda x, at, y: x.at[at].add(y, mode="promise_in_bounds")))

    def add(to_values, neighbor):
        at, weight = neighbor
        to_values = add_at(to_values, at[..., 0], (weight * gradient).astype(to_values.dtype))
        # As a product, because XLA for CPU is slow at sums over a short last axis.
        return to_values, jnp.dot(_take(values, at)[:, :, :, 0] * gradient, ones)

    start, ones = jnp.zeros(values.shape, weights.dtype), jnp.ones(values.shape[-1], weights.dtype)
    to_values, to_weights = jax.lax.scan(add, start, (_in_groups(index, 1), _in_groups(weights, 1)))
    to_weights = jnp.moveaxis(to_weights, 0, -1).astype(weights.dtype)
    return to_values.astype(values.dtype), None, to_weights


_sum_neighbors.defvjp(
    lambda *arguments: (_sum_neighbors(*arguments), arguments), _sum_neighbors_backward
)


def _in_groups(array: jax.Array, size: int) -> jax.Array:
    """[N, heads, Q, K] → [K / size, N, heads, Q, size]."""
    return jnp.moveaxis(array.reshape(*array.shape[:3], -1, size), 3, 0)


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """Values [N, heads, S, d] at indices [N, heads, Q, K]: [N, heads, Q, K, d]."""
    flat = index.reshape(*index.shape[:2], -1, 1)
    taken = jnp.take_along_axis(values, flat, axis=2, mode="promise_in_bounds")
    return taken.reshape(*index.shape, -1)


def neighbors(shapes: Shapes, pixels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The four tokens around each point, and their weights; zero outside of a map.

    Other arguments are those of `sample_by_gathers`.

    Returns:
        Indices among the tokens of all levels, int32, and weights: both [N, heads, Q, levels ·
        points · 4].
    """
    points = weights.shape[-1]
    heights, widths = (np.repeat(side, points) for side in zip(*shapes, strict=True))
    starts = np.repeat(np.cumsum([0] + [h * w for h, w in shapes[:-1]]), points)

    def by_head(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:3], -1).swapaxes(1, 2)

    rows = _two_neighbors(by_head(pixels[..., 1]), heights, by_head(weights))
    columns = _two_neighbors(by_head(pixels[..., 0]), widths)
    index = [starts + row * widths + column for row, _ in rows for column, _ in columns]
    products = [of_row * of_column for _, of_row in rows for _, of_column in columns]
    return jnp.concatenate(index, axis=-1), jnp.concatenate(products, axis=-1)


def _two_neighbors(pixels: jax.Array, sizes: np.ndarray, weights: jax.Array | float = 1.0):
    """The two neighbors along an axis: their positions, int32 [...], and their weights."""
    first = _floor(pixels)
    share = pixels - first
    first = first.astype(jnp.int32)
    pairs = (first, 1 - share), (first + 1, share)
    return [
        (jnp.clip(at, 0, sizes - 1), jnp.where((at >= 0) & (at < sizes), part * weights, 0))
        for at, part in pairs
    ]


def _floor(pixels: jax.Array) -> jax.Array:
    """The neighbor before; from a hair before a neighbor on, that one.

    At first all points lie on centers of pixels, up to rounding. The compiler may compute a point
    once for the positions of its neighbors and once for their weights, and round differently.
    Both must find the same neighbors. The samples are the same, because the weights are linear.
    """
    hair = 64 * jnp.finfo(pixels.dtype).eps
    return jnp.floor(pixels + hair)


def sample_by_levels(
    values: jax.Array, shapes: Shapes, pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """`sample`, level by level: small ones by products. Arguments as of `sample_by_gathers`."""
    total, start = jnp.zeros((), values.dtype), 0
    for level, shape in enumerate(shapes):
        own = values[:, start : start + shape[0] * shape[1]]
        start += shape[0] * shape[1]
        if own.shape[1] <= DENSE_TOKENS:
            out = sample_by_products(own, shape, pixels[:, :, :, level], weights[:, :, :, level])
        else:
            part = slice(level, level + 1)
            out = sample_by_gathers(own, [shape], pixels[:, :, :, part], weights[:, :, :, part])
        total = total + out
    return total


def sample_by_products(
    values: jax.Array, shape: tuple[int, int], pixels: jax.Array, weights: jax.Array
) -> jax.Array:
    """One level of `sample`, by products with matrices of bilinear weights.

    Args:
        values: [N, H·W, heads, d].
        shape: (H, W).
        pixels: (x, y) in pixels, 0 at the center of the first, [N, Q, heads, points, 2].
        weights: [N, Q, heads, points].
    """
    height, width = shape
    columns = _bilinear_weights(pixels[..., 0], width)  # [N, Q, heads, points, W]
    rows = _bilinear_weights(pixels[..., 1], height) * weights[..., None]
    matrix = jnp.einsum("nqhpy,nqhpx->nqhyx", rows, columns)
    matrix = matrix.reshape(*matrix.shape[:3], height * width).astype(values.dtype)
    return jnp.einsum("nqhs,nshd->nqhd", matrix, values)


def _bilinear_weights(pixels: jax.Array, size: int) -> jax.Array:
    """Weights of all positions of an axis: [...] → [..., size], with at most two above zero."""
    corner = _floor(pixels)
    share = (pixels - corner)[..., None]
    distance = jnp.arange(size) - corner.astype(jnp.int32)[..., None]
    return jnp.where(distance == 0, 1 - share, 0) + jnp.where(distance == 1, share, 0)
