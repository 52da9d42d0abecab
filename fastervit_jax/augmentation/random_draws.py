"""What the random steps on the device share: uniform numbers, boxes, and checks of settings."""

import jax
import jax.numpy as jnp


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers uniform in [0, 1), float32 whatever JAX's default dtype is."""
    return jax.random.uniform(key, shape, jnp.float32)


def index_below(count: int | jax.Array, number: jax.Array) -> jax.Array:
    """Turns a number uniform in [0, 1) into an integer uniform in 0 .. count - 1, int32."""
    return jnp.floor(number * count).astype(jnp.int32)


def inside_box(box: jax.Array, height: int, width: int) -> jax.Array:
    """Bool ``[H, W]``: which pixels lie in the box (top, bottom, left, right; ends exclusive)."""
    top, bottom, left, right = box
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return in_rows[:, None] & in_columns


def check_probability(name: str, probability: float) -> None:
    """Raises ValueError unless the probability lies between 0 and 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {probability}.")


def check_divisible(count: int, divisor: int, purpose: str) -> None:
    """Raises ValueError unless `divisor` divides the batch's `count` images.

    `purpose` says what for, with the divisor in braces: "make whole mixing groups of {}".
    """
    if count % divisor:
        raise ValueError(f"A batch of {count} images cannot {purpose.format(divisor)}.")
