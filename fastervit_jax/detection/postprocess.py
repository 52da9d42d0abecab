"""From the network's outputs to detections in an image's own pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastervit_jax.detection.boxes import to_corners

KEPT = 300
"""Detections that are kept for each image."""


class Detections(NamedTuple):
    """The best detections of each image, best first.

    Attributes:
        scores: from 0 to 1, [N, K].
        labels: classes, int32 [N, K].
        boxes: corner boxes in pixels of the original image, [N, K, 4].
    """

    scores: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    boxes: jax.Array | np.ndarray


def best_detections(
    logits: jax.Array, boxes: jax.Array, sizes: jax.Array, kept: int = KEPT
) -> Detections:
    """The best pairs of a query and a class; nothing is suppressed.

    Args:
        logits: of the last layer, [N, Q, classes].
        boxes: center boxes of the last layer, [N, Q, 4].
        sizes: (height, width) of the original images, in pixels, [N, 2].
        kept: number of detections; all pairs where there are fewer.
    """
    n, queries, classes = logits.shape
    scores = jax.nn.sigmoid(logits).reshape(n, -1)
    scores, index = jax.lax.top_k(scores, min(kept, queries * classes))
    chosen = jnp.take_along_axis(to_corners(boxes), (index // classes)[..., None], axis=1)
    height, width = sizes[:, 0].astype(boxes.dtype), sizes[:, 1].astype(boxes.dtype)
    scale = jnp.stack([width, height, width, height], axis=-1)
    return Detections(scores, index % classes, chosen * scale[:, None])
