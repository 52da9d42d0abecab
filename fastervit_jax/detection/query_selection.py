"""Two stages: the encoder's tokens propose boxes, and the best proposals start the decoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.detection.encoder import Levels
from fastervit_jax.detection.layers import BoxHead, ClassHead, Embedding, xavier_linear
from fastervit_jax.models.layers import layer_norm


class Selected(NamedTuple):
    """The chosen proposals.

    Attributes:
        references: logits of their center boxes, without a gradient, [N, Q, 4].
        content: content of the decoder's queries, [N, Q, C]: learned, the same for all images.
        logits: of their classes, [N, Q, classes].
        boxes: center boxes, [N, Q, 4].
        index: which tokens they are, int32 [N, Q].
        scores: the logit of their best class, [N, Q].
        tokens: all tokens as the heads see them, [N, S, C].
    """

    references: jax.Array
    content: jax.Array
    logits: jax.Array
    boxes: jax.Array
    index: jax.Array  # type: ignore[assignment]
    scores: jax.Array
    tokens: jax.Array


class QuerySelection(nnx.Module):
    """Scores every token, and selects the best ones (section 3.4 of the paper of DINO)."""

    def __init__(self, width: int, num_classes: int, queries: int, *, dtype, rngs: nnx.Rngs):
        self.queries = queries
        self.dtype = dtype
        self.output = xavier_linear(width, width, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.class_head = ClassHead(width, num_classes, dtype=dtype, rngs=rngs)
        self.box_head = BoxHead(width, dtype=dtype, rngs=rngs)
        self.content = Embedding(queries, width, rngs=rngs)

    @jax.named_scope("query_selection")
    def __call__(self, memory: jax.Array, levels: Levels) -> Selected:
        proposals, usable = proposal_logits(levels)
        tokens = self.norm(self.output(jnp.where(usable[..., None], memory, 0)))
        logits = self.class_head(tokens)
        scores, index = jax.lax.top_k(logits.max(axis=-1), self.queries)

        def chosen(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, index[..., None], axis=1)

        # The head of boxes needs to see the chosen tokens only.
        references = self.box_head(chosen(tokens)) + chosen(proposals)
        content = self.content.embedding[...].astype(self.dtype)
        return Selected(
            references=jax.lax.stop_gradient(references),
            content=jnp.broadcast_to(content, (len(memory), *content.shape)),
            logits=chosen(logits),
            boxes=jax.nn.sigmoid(references),
            index=index,
            scores=scores,
            tokens=tokens,
        )


def proposal_logits(levels: Levels) -> tuple[jax.Array, jax.Array]:
    """A box around each token, as logits, and where it can be used.

    Args:
        levels: shapes and padding of the levels.

    Returns:
        Logits of center boxes [N, S, 4], infinite where they cannot be used; True where they can,
        [N, S]: not on padding, and not at the very edge of the image.
    """
    n, boxes, start = len(levels.padding), [], 0
    for level, (height, width) in enumerate(levels.shapes):
        valid = ~levels.padding[:, start : start + height * width].reshape(n, height, width)
        start += height * width
        counts = jnp.stack([valid[:, 0].sum(axis=1), valid[:, :, 0].sum(axis=1)], axis=-1)
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        cells = np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5
        dtype = levels.valid_ratios.dtype
        centers = jnp.asarray(cells, dtype) / counts[:, None].astype(dtype)
        boxes.append(jnp.concatenate([centers, jnp.full_like(centers, 0.05 * 2**level)], -1))
    proposals = jnp.concatenate(boxes, axis=1)
    inside = jnp.all((proposals > 0.01) & (proposals < 0.99), axis=-1)
    usable = inside & ~levels.padding
    safe = jnp.where(usable[..., None], proposals, 0.5)
    logits = jnp.log(safe / (1 - safe))
    return jnp.where(usable[..., None], logits, jnp.inf), usable
