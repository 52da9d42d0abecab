"""From the backbone's maps to tokens, and the deformable encoder."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.detection.deformable_attention import DeformableAttention
from fastervit_jax.detection.layers import FeedForward
from fastervit_jax.detection.position import map_positions, resized_mask, valid_ratios
from fastervit_jax.detection.sampling import Shapes
from fastervit_jax.models.layers import full_precision, layer_norm, normal


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """What is known of the positions of all levels, from fine to coarse, row by row.

    Attributes:
        shapes: (height, width) of each level.
        padding: True on padding, [N, S].
        positions: sine embeddings, one array [N, height · width, C] per level.
        valid_ratios: share of columns and rows without padding, [N, levels, 2].
    """

    shapes: Shapes = dataclasses.field(metadata=dict(static=True))
    padding: jax.Array
    positions: list[jax.Array]
    valid_ratios: jax.Array

    def references(self) -> jax.Array:
        """The center (x, y) of each token on each level, [N, S, levels, 2]."""
        per_level = []
        for level, (height, width) in enumerate(self.shapes):
            ratio = self.valid_ratios[:, level, None]
            centers = _centers(height, width) / jnp.asarray([width, height], ratio.dtype)
            per_level.append(centers[None] / ratio)
        own = jnp.concatenate(per_level, axis=1)
        return own[:, :, None] * self.valid_ratios[:, None]


def _centers(height: int, width: int) -> jax.Array:
    """(column + ½, row + ½) of all positions, row by row: [height · width, 2]."""
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    return jnp.stack([columns.ravel(), rows.ravel()], axis=-1) + 0.5


def describe_levels(mask: jax.Array, shapes: Shapes, features: int) -> Levels:
    """Positions and padding of the levels of a batch.

    Args:
        mask: True on padding, [N, H, W].
        shapes: (height, width) of each level.
        features: width of the tokens.
    """
    masks = [resized_mask(mask, *shape) for shape in shapes]
    n = len(mask)
    return Levels(
        shapes=tuple(shapes),
        padding=jnp.concatenate([each.reshape(n, -1) for each in masks], axis=1),
        positions=[map_positions(each, features).reshape(n, -1, features) for each in masks],
        valid_ratios=jnp.stack([valid_ratios(each) for each in masks], axis=1),
    )


class EncoderLayer(nnx.Module):
    """Deformable self-attention, then a feed-forward, each with a layer norm after the sum."""

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
        self.attention = DeformableAttention(width, heads, levels, points, **options)
        self.attention_norm = layer_norm(width, epsilon=1e-5, **options)
        norm = layer_norm(width, epsilon=1e-5, **options)
        self.feedforward = FeedForward(width, hidden, norm=norm, **options)

    def __call__(
        self, x: jax.Array, positions: jax.Array, references: jax.Array, levels: Levels
    ) -> jax.Array:
        """[N, S, C] → same."""
        branch = self.attention(x + positions, references, x, levels.padding, levels.shapes)
        return self.feedforward(self.attention_norm(x + branch))


class Encoder(nnx.Module):
    """Tokens of all levels that attend to each other: [N, S, C] → same.

    Attributes:
        remat: in training, keep only the input of each layer, and compute the rest again for the
            gradient.
        level_embedding: what is added to the position of each level's tokens, [levels, C].
    """

    def __init__(
        self,
        width: int,
        heads: int,
        levels: int,
        points: int,
        hidden: int,
        layers: int,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.remat = False
        self.dtype = dtype
        self.level_embedding = nnx.Param(normal(1.0)(rngs.params(), (levels, width)))
        self.layers = nnx.List(
            EncoderLayer(width, heads, levels, points, hidden, dtype=dtype, rngs=rngs)
            for _ in range(layers)
        )

    @jax.named_scope("encoder")
    def __call__(self, x: jax.Array, levels: Levels) -> jax.Array:
        embedding = self.level_embedding[...].astype(full_precision(self.dtype))
        of_levels = [own + embedding[level] for level, own in enumerate(levels.positions)]
        positions = jnp.concatenate(of_levels, axis=1).astype(self.dtype)
        references = levels.references()

        def run(layer, x, positions, references, levels):
            return layer(x, positions, references, levels)

        run = nnx.remat(run) if self.remat else run
        for layer in self.layers:
            x = run(layer, x, positions, references, levels)
        return x
