"""Position embeddings and biases: small networks that map coordinates to values.

The coordinates are fixed, so the outputs depend on the weights alone. They are computed once per
forward pass, whatever the batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models.layers import full_precision, linear

_HIDDEN = 512


def _coordinates(first: int, last: int) -> np.ndarray:
    """All (row, column) pairs with both in first … last: [side², 2], row-major, float64."""
    steps = np.arange(first, last + 1, dtype=np.float64)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)


class CoordinateNetwork(nnx.Module):
    """Two linear layers with a ReLU: coordinates [T, 2] → [T, features], in float32 or wider."""

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        self.dtype = full_precision(dtype)
        self.hidden = linear(2, _HIDDEN, dtype=self.dtype, rngs=rngs)
        self.out = linear(_HIDDEN, features, use_bias=False, dtype=self.dtype, rngs=rngs)

    def __call__(self, coordinates: np.ndarray) -> jax.Array:
        return self.out(jax.nn.relu(self.hidden(jnp.asarray(coordinates, self.dtype))))


class PositionEmbedding(nnx.Module):
    """A position embedding for a square of tokens (the reference's `PosEmbMLPSwinv1D`).

    Attributes:
        by_tokens: whether coordinates count from half the number of tokens instead of half the
            side, and are divided by it: the `PosEmbMLPSwinv1D` of the official DINO.
    """

    def __init__(self, features: int, *, by_tokens: bool = False, dtype, rngs: nnx.Rngs):
        self.by_tokens = by_tokens
        self.network = CoordinateNetwork(features, dtype=dtype, rngs=rngs)

    def coordinates(self, side: int) -> np.ndarray:
        """Input of the network: (i − half) / half for rows and columns, [side², 2]."""
        half = (side**2 if self.by_tokens else side) // 2
        return (_coordinates(0, side - 1) - half) / half

    def __call__(self, side: int) -> jax.Array:
        """The embedding of a square of tokens, [side², features]."""
        return self.network(self.coordinates(side))


class RelativePositionBias(nnx.Module):
    """A bias for the attention logits of a square of tokens (the reference's `PosEmbMLPSwinv2D`).

    A network over log-spaced relative coordinates query − key, then 16 · sigmoid: the continuous
    position bias of Swin Transformer V2. Tokens in front of the square get zero bias: the carrier
    tokens in front of a window's tokens, or the surplus carriers of a map that is not square.
    """

    def __init__(self, num_heads: int, *, dtype, rngs: nnx.Rngs):
        self.network = CoordinateNetwork(num_heads, dtype=dtype, rngs=rngs)

    @staticmethod
    def coordinates(side: int) -> np.ndarray:
        """Input of the network: all relative positions in a square, [(2·side − 1)², 2].

        In the reverse order of the reference's table, which makes it the order of key − query.
        """
        reach = side - 1
        scaled = _coordinates(-reach, reach)[::-1] / reach * 8
        return np.sign(scaled) * np.log2(np.abs(scaled) + 1) / np.log2(8)

    def __call__(self, tokens: int, side: int) -> jax.Array:
        """The bias [heads, queries, keys] of `tokens` tokens, whose last side² form a square."""
        table = 16 * jax.nn.sigmoid(self.network(self.coordinates(side)))
        table = table.T.reshape(-1, 2 * side - 1, 2 * side - 1)
        # [heads, query's row, key's row, query's column, key's column]
        bias = _by_query_and_key(_by_query_and_key(table, axis=1), axis=3)
        bias = bias.swapaxes(2, 3).reshape(-1, side**2, side**2)
        in_front = tokens - side**2
        return jnp.pad(bias, ((0, 0), (in_front, 0), (in_front, 0)))


def _by_query_and_key(table: jax.Array, axis: int) -> jax.Array:
    """Replaces an axis of relative positions, key − query, by two: query and key.

    The axis has 2·side − 1 values, from −(side − 1) on; the two new ones have side positions each.
    This uses copies and slices only: accelerators have no fast gather, and its gradient is a
    scatter.
    """
    side = (table.shape[axis] + 1) // 2
    period = 2 * side
    values = jnp.moveaxis(table, axis, -1)
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    # Rows that are one shorter than the period: each begins one position further to the left.
    lead = values.shape[:-1]
    rows = jnp.broadcast_to(values[..., None, :], (*lead, side, period)).reshape(*lead, -1)
    rows = rows[..., : side * (period - 1)].reshape(*lead, side, period - 1)
    return jnp.moveaxis(rows[..., side - 1 :], (-2, -1), (axis, axis + 1))
