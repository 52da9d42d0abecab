"""The loss of a segmentation network."""

import jax
import jax.numpy as jnp

from fastervit_jax.data.sources.masks import IGNORE
from fastervit_jax.segmentation.resize import resize


def segmentation_cross_entropy(
    scores: jax.Array, labels: jax.Array, *, count_ignored: bool = True
) -> jax.Array:
    """Mean cross-entropy over pixels, after resizing the scores to the labels' size.

    Args:
        scores: logits [N, h, w, K], any size and float type.
        labels: classes [N, H, W], integers; pixels of the value `IGNORE` add nothing.
        count_ignored: whether ignored pixels count in the mean, with a loss of 0. True is
            mmsegmentation's `CrossEntropyLoss`, False is torch's and that of transformers. Without
            any labeled pixel the loss is 0 in both.

    Returns:
        A scalar, float32 or higher.
    """
    logits = resize(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), labels.shape[1:])
    labeled = labels != IGNORE
    known = jnp.where(labeled, labels, 0).astype(jnp.int32)
    of_label = jnp.take_along_axis(logits, known[..., None], axis=-1)[..., 0]
    loss = jnp.where(labeled, jax.nn.logsumexp(logits, axis=-1) - of_label, 0)
    count = labeled.size if count_ignored else jnp.maximum(jnp.sum(labeled), 1)
    return jnp.sum(loss) / count
