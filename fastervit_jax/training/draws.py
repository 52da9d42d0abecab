"""What the random steps on the device share: uniform numbers, boxes, and checks of settings."""

import jax
import jax.numpy as jnp


def uniform(
    key: jax.Array, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
) -> jax.Array:
    """Float32 numbers, uniform from `low` to `high`, whatever JAX's default dtype is."""
    return jax.random.uniform(key, shape, jnp.float32, low, high)


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
