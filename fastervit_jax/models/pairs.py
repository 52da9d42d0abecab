"""Two images side by side in the channels of one map, for TPUs: it changes speed alone.

TPUs keep the last axis of an array in rows of 128 numbers and compute on whole rows. A map of 64
channels leaves half of every row empty; with a second image beside the first none is. A convolution
then has its kernel twice, on a diagonal of zeros: the matrix units had multiplied by as many zeros
before. What it is worth stands in benchmarks/NOTES.md.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.layers import full_precision

ROW = 128
"""Numbers in a row of a TPU's memory."""


def pair(maps: jax.Array) -> jax.Array:
    """Puts images 2i and 2i + 1 side by side: [N, H, W, C] → [N/2, H, W, 2·C]."""
    n, height, width, channels = maps.shape
    apart = maps.reshape(n // 2, 2, height, width, channels)
    return apart.transpose(0, 2, 3, 1, 4).reshape(n // 2, height, width, 2 * channels)


def unpair(maps: jax.Array) -> jax.Array:
    """Inverse of `pair`."""
    n, height, width, channels = maps.shape
    apart = maps.reshape(n, height, width, 2, channels // 2).transpose(0, 3, 1, 2, 4)
    return apart.reshape(2 * n, height, width, channels // 2)


def convolve(convolution: nnx.Conv, maps: jax.Array) -> jax.Array:
    """A convolution of maps that hold one image, or, with twice the channels, two side by side."""
    if maps.shape[-1] == 2 * convolution.in_features:
        convolution = _of_pairs(convolution)
    return convolution(maps)


def _of_pairs(convolution: nnx.Conv) -> nnx.Conv:
    wide = nnx.clone(convolution, variables=False)
    kernel = convolution.kernel[...]
    wide.kernel = nnx.Param(jnp.kron(jnp.eye(2, dtype=kernel.dtype), kernel))
    if convolution.bias is not None:
        wide.bias = nnx.Param(jnp.tile(convolution.bias[...], 2))
    return wide


def normalise(norm: nnx.LayerNorm, maps: jax.Array) -> jax.Array:
    """A layer norm of maps that hold one image, or, with twice the channels, two side by side.

    Of two, sums come out of a product with a matrix of ones for either's channels: sums over half a
    row would part the rows.
    """
    features = norm.num_features
    if maps.shape[-1] == features:
        return norm(maps)
    wide = full_precision(maps.dtype)
    adding = jnp.kron(jnp.eye(2, dtype=wide), jnp.ones((features, features), wide))
    # Three products of bfloat16 hold 16 bits: all that bfloat16 values and their squares have.
    precision = "high" if norm.use_fast_variance else "highest"

    def mean_of(values):
        return jnp.dot(values, adding, precision=precision) / features

    x = maps.astype(wide)
    mean = mean_of(x)
    if norm.use_fast_variance:
        variance = jnp.maximum(mean_of(jnp.square(x)) - jnp.square(mean), 0)
    else:
        variance = mean_of(jnp.square(x - mean))
    multiplier = jnp.tile(norm.scale[...], 2) * jax.lax.rsqrt(variance + norm.epsilon)
    return ((x - mean) * multiplier + jnp.tile(norm.bias[...], 2)).astype(norm.dtype)
