"""The decoder: queries that attend to each other and to the image, and refine their boxes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.detection.boxes import logit
from fastervit_jax.detection.deformable_attention import DeformableAttention
from fastervit_jax.detection.encoder import Levels
from fastervit_jax.detection.layers import (
    BoxHead,
    ClassHead,
    FeedForward,
    torch_linear,
    xavier_linear,
)
from fastervit_jax.detection.position import box_positions
from fastervit_jax.models.layers import full_precision, layer_norm
from fastervit_jax.models.transformer import unnormalized_softmax


class SelfAttention(nnx.Module):
    """Attention between queries, as `torch.nn.MultiheadAttention`: [N, Q, C] → same."""

    def __init__(self, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.dtype = dtype
        self.in_projection = xavier_linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = xavier_linear(width, width, dtype=dtype, rngs=rngs)

    @jax.named_scope("self_attention")
    def __call__(
        self, content: jax.Array, positions: jax.Array, blocked: jax.Array | None
    ) -> jax.Array:
        """Attends. Positions belong to queries and keys, not to values.

        Args:
            content: [N, Q, C].
            positions: [N, Q, C].
            blocked: True where a query (second axis) does not see a key, [N or 1, Q, Q].
        """
        n, count, width = content.shape
        kernel, bias = self.in_projection.arrays()
        assert bias is not None
        looking = (content + positions) @ kernel[:, : 2 * width] + bias[: 2 * width]
        values = content @ kernel[:, 2 * width :] + bias[2 * width :]
        q, k = (part.reshape(n, count, self.heads, -1) for part in jnp.split(looking, 2, axis=-1))
        v = values.reshape(n, count, self.heads, -1)
        wide = full_precision(self.dtype)
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=wide)
        logits = logits * q.shape[-1] ** -0.5
        if blocked is not None:
            logits = jnp.where(blocked[:, None], -jnp.inf, logits)
        weights, total = unnormalized_softmax(logits)
        weights = weights.astype(self.dtype)
        out = jnp.einsum("nhqk,nkhd->nhqd", weights, v, preferred_element_type=wide) / total
        out = out.astype(self.dtype).swapaxes(1, 2)
        return self.output(out.reshape(n, count, width))


class DecoderLayer(nnx.Module):
    """Self-attention, deformable attention to the image, feed-forward; a layer norm after each."""

    def __init__(
        self,
        width: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.self_attention = SelfAttention(width, heads, **options)
        self.self_norm = layer_norm(width, epsilon=1e-5, **options)
        self.cross_attention = DeformableAttention(width, heads, levels, points, **options)
        self.cross_norm = layer_norm(width, epsilon=1e-5, **options)
        norm = layer_norm(width, epsilon=1e-5, **options)
        self.feedforward = FeedForward(width, hidden, norm=norm, **options)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        references: jax.Array,
        memory: jax.Array,
        levels: Levels,
        blocked: jax.Array | None,
    ) -> jax.Array:
        """[N, Q, C] → same; `references` are center boxes per level, [N, Q, levels, 4]."""
        x = self.self_norm(x + self.self_attention(x, positions, blocked))
        branch = self.cross_attention(
            x + positions, references, memory, levels.padding, levels.shapes
        )
        return self.feedforward(self.cross_norm(x + branch))


class PositionHead(nnx.Module):
    """Two linear layers with a ReLU between them: sines of a box → position of a query."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        first = torch_linear(2 * width, width, **options)
        self.layers = nnx.List([first, torch_linear(width, width, **options)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, Q, 2C] → [N, Q, C]."""
        return self.layers[1](jax.nn.relu(self.layers[0](x)))


class Decoded(NamedTuple):
    """What the decoder's layers return, one after the other.

    Attributes:
        logits: of the classes, float32 [layers, N, Q, classes].
        boxes: center boxes, float32 [layers, N, Q, 4].
        content: the queries before the last norm, [layers, N, Q, C].
    """

    logits: jax.Array
    boxes: jax.Array
    content: jax.Array


class Decoder(nnx.Module):
    """Refines boxes layer by layer; one head of classes and one of boxes for all layers.

    *Look forward twice*: the gradient of a layer's boxes also reaches the layer before, through the
    reference that it handed on (section 3.5 of the paper of DINO).

    Attributes:
        remat: as of `Encoder`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        layers: int,
        num_classes: int,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.remat = False
        self.dtype = dtype
        self.width = width
        options = dict(dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            DecoderLayer(width, heads, levels, points, hidden, **options) for _ in range(layers)
        )
        self.norm = layer_norm(width, epsilon=1e-5, **options)
        self.position_head = PositionHead(width, **options)
        self.class_head = ClassHead(width, num_classes, **options)
        self.box_head = BoxHead(width, **options)

    @jax.named_scope("decoder")
    def __call__(
        self,
        content: jax.Array,
        references: jax.Array,
        memory: jax.Array,
        levels: Levels,
        blocked: jax.Array | None = None,
    ) -> Decoded:
        """Runs all layers.

        Args:
            content: of the queries, [N, Q, C].
            references: logits of their first center boxes, [N, Q, 4].
            memory: from the encoder, [N, S, C].
            levels: what is known of its tokens.
            blocked: True where a query does not see another, [N or 1, Q, Q].
        """
        ratios = jnp.concatenate([levels.valid_ratios, levels.valid_ratios], axis=-1)

        def run(layer, x, positions, references, memory, levels, blocked):
            return layer(x, positions, references, memory, levels, blocked)

        run = nnx.remat(run) if self.remat else run
        reference = jax.nn.sigmoid(references)
        handed_on = reference
        contents, logits, boxes = [], [], []
        for layer in self.layers:
            per_level = reference[:, :, None] * ratios[:, None]
            sines = box_positions(per_level[:, :, 0], self.width)
            positions = self.position_head(sines.astype(self.dtype))
            content = run(layer, content, positions, per_level, memory, levels, blocked)
            contents.append(content)
            normed = self.norm(content)
            logits.append(self.class_head(normed))
            boxes.append(jax.nn.sigmoid(self.box_head(normed) + logit(handed_on)))
            handed_on = jax.nn.sigmoid(self.box_head(content) + logit(reference))
            reference = jax.lax.stop_gradient(handed_on)
        return Decoded(jnp.stack(logits), jnp.stack(boxes), jnp.stack(contents))
