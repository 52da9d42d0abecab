"""Padding masks, and the sine embeddings of positions and boxes."""

import math

import jax
import jax.numpy as jnp
import numpy as np

MAP_TEMPERATURE = 20
BOX_TEMPERATURE = 10000


def padding_mask(sizes: jax.Array, height: int, width: int) -> jax.Array:
    """True where a pixel is padding: [N, height, width].

    Args:
        sizes: (height, width) of each image, int32 [N, 2]; padding is right and below.
        height: height of the batch.
        width: width of the batch.
    """
    rows = jnp.arange(height)[None, :] >= sizes[:, :1]
    columns = jnp.arange(width)[None, :] >= sizes[:, 1:]
    return rows[:, :, None] | columns[:, None, :]


def resized_mask(mask: jax.Array, height: int, width: int) -> jax.Array:
    """A mask [N, H, W] at the size of a map, by nearest neighbor: [N, height, width]."""
    rows = _nearest(mask.shape[1], height)
    columns = _nearest(mask.shape[2], width)
    return mask[:, rows][:, :, columns]


def _nearest(size: int, new_size: int) -> np.ndarray:
    """Rows that torch's `interpolate(mode="nearest")` takes, whose scale is float32."""
    scale = np.float32(size) / np.float32(new_size)
    rows = np.floor(np.arange(new_size, dtype=np.float32) * scale).astype(int)
    return np.minimum(rows, size - 1)


def valid_ratios(mask: jax.Array) -> jax.Array:
    """Share of the columns and of the rows that are no padding: float32 [N, 2], (x, y)."""
    columns = jnp.mean(~mask[:, 0, :], axis=1, dtype=jnp.float32)
    rows = jnp.mean(~mask[:, :, 0], axis=1, dtype=jnp.float32)
    return jnp.stack([columns, rows], axis=-1)


def map_positions(mask: jax.Array, features: int) -> jax.Array:
    """Sine embedding of the positions of a map: float32 [N, H, W, features], y before x.

    A coordinate counts the rows or columns without padding up to a position, divided by how many
    there are (the official `PositionEmbeddingSineHW`).

    Args:
        mask: True on padding, [N, H, W].
        features: width, a multiple of 4.
    """
    valid = (~mask).astype(jnp.float32)
    rows, columns = jnp.cumsum(valid, axis=1), jnp.cumsum(valid, axis=2)
    rows = rows / (rows[:, -1:, :] + 1e-6)
    columns = columns / (columns[:, :, -1:] + 1e-6)
    parts = [_sines(x, features // 2, MAP_TEMPERATURE) for x in (rows, columns)]
    return jnp.concatenate(parts, axis=-1)


def box_positions(boxes: jax.Array, features: int) -> jax.Array:
    """Sine embedding of center boxes [..., 4]: [..., 2 · features], in the order y, x, w, h."""
    parts = [_sines(boxes[..., i], features // 2, BOX_TEMPERATURE) for i in (1, 0, 2, 3)]
    return jnp.concatenate(parts, axis=-1)


def _sines(x: jax.Array, features: int, temperature: float) -> jax.Array:
    """Sines and cosines of 2πx at falling frequencies, in turns: [...] → [..., features]."""
    frequencies = temperature ** -(2.0 * np.arange(features // 2) / features)
    angles = (2 * math.pi) * x[..., None] * jnp.asarray(frequencies, x.dtype)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*x.shape, features)
