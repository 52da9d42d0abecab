"""Losses of DINO: focal loss of the classes, L1 and generalized IoU of the boxes.

All are sums for each image, float32. The objective divides them by the number of boxes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastervit_jax.detection.boxes import generalized_iou, to_corners

FOCAL_ALPHA = 0.25
CLASS_WEIGHT, BOX_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0


class Losses(NamedTuple):
    """Sums over an image's queries or boxes, each [N].

    Attributes:
        classes: focal loss.
        boxes: L1 distance of center boxes.
        giou: 1 − generalized IoU.
    """

    classes: jax.Array
    boxes: jax.Array
    giou: jax.Array

    def weighted(self) -> jax.Array:
        """The weighted sum of the three, [N]."""
        return CLASS_WEIGHT * self.classes + BOX_WEIGHT * self.boxes + GIOU_WEIGHT * self.giou


def focal_loss(logits: jax.Array, labels: jax.Array, counted: jax.Array | None = None):
    """Sigmoid focal loss (Lin et al., 2017; α ¼, γ 2), summed over queries and classes: [N].

    Args:
        logits: [N, Q, classes].
        labels: the class of each query, int32 [N, Q]; −1: none.
        counted: which queries count, bool [N, Q]; None: all.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wanted = labels[..., None] == jnp.arange(logits.shape[-1])
    # Probability and logarithm of the wrong answer: of the class where it is not wanted, and else
    # of its absence.
    signed = jnp.where(wanted, -logits, logits)
    entropy = jax.nn.softplus(signed)
    weight = jnp.where(wanted, FOCAL_ALPHA, 1 - FOCAL_ALPHA)
    loss = weight * jax.nn.sigmoid(signed) ** 2 * entropy
    if counted is not None:
        loss = jnp.where(counted[..., None], loss, 0)
    return loss.sum(axis=(1, 2))


def detection_losses(
    logits: jax.Array,
    boxes: jax.Array,
    query: jax.Array,
    real: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    counted: jax.Array | None = None,
) -> Losses:
    """Losses of one output.

    Args:
        logits: [N, Q, classes].
        boxes: predicted center boxes, [N, Q, 4].
        query: the query of each target, int32 [N, T].
        real: which targets exist, bool [N, T].
        labels: their classes, int32 [N, T].
        targets: their center boxes, [N, T, 4].
        counted: queries that count in the focal loss, bool [N, Q]; None: all.
    """
    n, queries, _ = logits.shape
    # A target that does not exist is written to a query that does not exist.
    place = jnp.where(real, query, queries)
    wanted = jnp.full((n, queries + 1), -1, jnp.int32)
    wanted = wanted.at[jnp.arange(n)[:, None], place].set(labels)[:, :queries]

    chosen = jnp.take_along_axis(boxes, query[..., None], axis=1)
    distance = jnp.abs(chosen - targets).sum(axis=-1)
    overlap = generalized_iou(to_corners(chosen), to_corners(targets))
    return Losses(
        classes=focal_loss(logits, wanted, counted),
        boxes=jnp.where(real, distance, 0).sum(axis=1),
        giou=jnp.where(real, 1 - overlap, 0).sum(axis=1),
    )
