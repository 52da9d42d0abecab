"""Helpers of the random steps on the device: uniform numbers, boxes, checks of settings."""

import chex
import jax
import jax.numpy as jnp


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform random numbers in [0, 1), always float32."""
    return jax.random.uniform(key, shape, jnp.float32)


def index_below(count: int | jax.Array, number: jax.Array) -> jax.Array:
    """Maps a uniform number in [0, 1) to a uniform int32 in 0 .. count - 1."""
    return jnp.floor(number * count).astype(jnp.int32)


def inside_box(box: jax.Array, height: int, width: int) -> jax.Array:
    """Returns a mask of the pixels in a box, bool `[H, W]`.

    `box` is `[4]`: top, bottom, left, right. Bottom and right are exclusive.
    """
    chex.assert_shape(box, (4,))
    top, bottom, left, right = box
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, None] & in_columns


def check_probability(name: str, probability: float) -> None:
    """Raises ValueError unless the probability is between 0 and 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"Invalid {name}: expected 0 to 1, got {probability}.")


def check_divisible(count: int, divisor: int, purpose: str) -> None:
    """Raises ValueError unless `divisor` divides the batch size `count`.

    `purpose` describes the divisor in the message. "{}" stands for its value: "the {} devices".
    """
    if count % divisor:
        raise ValueError(
            f"Invalid batch size {count}: must be a multiple of {purpose.format(divisor)}."
        )
