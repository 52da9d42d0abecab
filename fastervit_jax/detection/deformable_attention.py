"""Deformable attention (Zhu et al., 2021): each query looks at a few points of every level."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.detection.layers import xavier_linear, zero_linear
from fastervit_jax.detection.sampling import Shapes, sample
from fastervit_jax.models.layers import full_precision


class DeformableAttention(nnx.Module):
    """Multi-scale deformable attention (the official `MSDeformAttn`).

    A query predicts, for each head and level, a few points around its reference, and a weight for
    each. Its output is the weighted sum of the values there.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int, *, dtype, rngs: nnx.Rngs):
        self.heads, self.levels, self.points = heads, levels, points
        self.dtype = dtype
        options: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        # Where to look is computed in full precision: a map can have more columns than bfloat16
        # has digits.
        wide: dict[str, Any] = dict(dtype=full_precision(dtype), rngs=rngs)
        count = heads * levels * points
        self.sampling_offsets = zero_linear(width, 2 * count, bias=self._star, **wide)
        self.attention_weights = zero_linear(width, count, **wide)
        self.value = xavier_linear(width, width, **options)
        self.output = xavier_linear(width, width, **options)

    def _star(self, key, shape, dtype=jnp.float32):
        """First offsets: point k of a head lies k pixels away in the head's own direction."""
        del key
        angles = 2 * math.pi * np.arange(self.heads) / self.heads
        directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        directions /= np.abs(directions).max(axis=-1, keepdims=True)
        steps = np.arange(1, self.points + 1)
        offsets = directions[:, None, None, :] * steps[None, None, :, None]
        offsets = np.broadcast_to(offsets, (self.heads, self.levels, self.points, 2))
        return jnp.asarray(offsets.reshape(shape), dtype)

    @jax.named_scope("deformable_attention")
    def __call__(
        self,
        queries: jax.Array,
        references: jax.Array,
        memory: jax.Array,
        padding: jax.Array,
        shapes: Shapes,
    ) -> jax.Array:
        """Attends.

        Args:
            queries: content plus position, [N, Q, C].
            references: points (x, y), or center boxes, per level: [N, Q, levels, 2 or 4], as
                shares of the level with its padding.
            memory: tokens of all levels, [N, S, C].
            padding: True on padding tokens, whose values are zero, [N, S].
            shapes: (height, width) of each level.

        Returns:
            [N, Q, C].
        """
        n, count, _ = queries.shape
        by_point = (n, count, self.heads, self.levels, self.points)
        values = jnp.where(padding[..., None], 0, self.value(memory))
        values = values.reshape(n, memory.shape[1], self.heads, -1)
        offsets = self.sampling_offsets(queries).reshape(*by_point, 2)
        weights = self.attention_weights(queries).reshape(n, count, self.heads, -1)
        weights = jax.nn.softmax(weights, axis=-1).reshape(by_point)
        points = self._points(references, offsets, shapes)
        sampled = sample(values, shapes, points, weights)
        return self.output(sampled.reshape(n, count, -1))

    def _points(self, references: jax.Array, offsets: jax.Array, shapes: Shapes) -> jax.Array:
        """Where the points lie, [N, Q, heads, levels, points, 2]."""
        references = references[:, :, None, :, None]
        if references.shape[-1] == 4:
            size = references[..., 2:]
            return references[..., :2] + offsets / self.points * size * 0.5
        pixels = np.asarray([(width, height) for height, width in shapes])
        return references + offsets / jnp.asarray(pixels[:, None], offsets.dtype)
