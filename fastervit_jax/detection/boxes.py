"""Boxes: their two forms, overlaps, and the logit that refines them.

A *center* box is (center x, center y, width, height), a *corner* box (left, top, right, bottom). In
the network both are shares of the image's width and height.
"""

import jax
import jax.numpy as jnp


def to_corners(boxes: jax.Array) -> jax.Array:
    """Center boxes [..., 4] as corner boxes."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - 0.5 * size, center + 0.5 * size], axis=-1)


def to_centers(boxes: jax.Array) -> jax.Array:
    """Corner boxes [..., 4] as center boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([0.5 * (low + high), high - low], axis=-1)


def area(boxes: jax.Array) -> jax.Array:
    """Areas of corner boxes [..., 4]: [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def generalized_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalized IoU (Rezatofighi et al., 2019) of corner boxes that broadcast: [..., 4] → [...].

    IoU minus the share of the enclosing box that neither box covers: from −1 to 1.
    """
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    overlap = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    union = area(a) + area(b) - overlap
    low, high = jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])
    enclosing = jnp.prod(high - low, axis=-1)
    tiny = 1e-9  # two empty boxes in one place
    return overlap / jnp.maximum(union, tiny) - (enclosing - union) / jnp.maximum(enclosing, tiny)


def logit(x: jax.Array) -> jax.Array:
    """Inverse of the sigmoid, with x and 1 − x of at least 1e-3.

    The official DINO uses 1e-3, not the 1e-5 of other detectors.
    """
    x = jnp.clip(x, 0, 1)
    return jnp.log(jnp.maximum(x, 1e-3) / jnp.maximum(1 - x, 1e-3))
