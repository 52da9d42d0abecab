"""The transformer layer that windows and carrier tokens both go through."""

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import Dropout, drop_path, full_precision, layer_norm, linear
from fastervit_jax.models.position import RelativePositionBias


class Attention(nnx.Module):
    """Multi-head self-attention with a relative position bias (the reference's `WindowAttention`).

    Tokens are [N, T, C]; the last side² of the T form a square and know each other's positions.
    """

    def __init__(self, config: FasterViTConfig, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.scale = config.qk_scale or (width // heads) ** -0.5
        self.dtype = dtype
        self.qkv = linear(width, 3 * width, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.position_bias = RelativePositionBias(heads, dtype=dtype, rngs=rngs)
        self.weights_dropout = Dropout(config.attn_drop_rate)
        self.projection = linear(width, width, dtype=dtype, rngs=rngs)
        self.projection_dropout = Dropout(config.drop_rate)

    @jax.named_scope("attention")
    def __call__(self, x: jax.Array, side: int, rngs: nnx.Rngs | None = None) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = self.weights_dropout(self.weights(query, key, side), rngs=rngs)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights.astype(self.dtype), value)
        x = self.projection(mixed.reshape(n, tokens, width))
        return self.projection_dropout(x, rngs=rngs)

    def weights(self, query: jax.Array, key: jax.Array, side: int) -> jax.Array:
        """How much each token takes from each: [N, T, heads, d] twice → [N, heads, T, T].

        Rows sum to one. Computed in float32 or wider.
        """
        logits = jnp.einsum(
            "nqhd,nkhd->nhqk", query, key, preferred_element_type=full_precision(self.dtype)
        )
        bias = self.position_bias(query.shape[1], side)
        return jax.nn.softmax(logits * self.scale + bias, axis=-1)


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them, on tokens [..., C]."""

    def __init__(self, config: FasterViTConfig, width: int, *, dtype, rngs: nnx.Rngs):
        hidden = int(width * config.mlp_ratio)
        self.expand = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.drop_rate)

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = jax.nn.gelu(self.expand(x), approximate=False)
        x = self.contract(self.dropout(x, rngs=rngs))
        return self.dropout(x, rngs=rngs)


class LayerScale(nnx.Module):
    """Multiplies each channel by a learnt factor (Touvron et al., 2021)."""

    def __init__(self, initial: float, width: int):
        self.gamma = nnx.Param(jnp.full(width, initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


def layer_scale(initial: float | None, width: int) -> "LayerScale | None":
    """A layer scale, or none where the configuration has none."""
    return None if initial is None else LayerScale(initial, width)


class TransformerLayer(nnx.Module):
    """Attention, then an MLP, each on normed tokens and added to the stream: [N, T, C] → same.

    The last side² of the T tokens form a square, whose positions the attention knows.
    Drop path drops a branch for one entry of the first axis: one image's carriers, or one window.
    """

    def __init__(
        self,
        config: FasterViTConfig,
        width: int,
        heads: int,
        drop_path_rate: float,
        *,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, width, heads, dtype=dtype, rngs=rngs)
        self.attention_scale = layer_scale(config.layer_scale, width)
        self.mlp_norm = layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config, width, dtype=dtype, rngs=rngs)
        self.mlp_scale = layer_scale(config.layer_scale, width)
        self.drop_path = drop_path(drop_path_rate, ndim=3)

    def __call__(self, x: jax.Array, side: int, rngs: nnx.Rngs | None = None) -> jax.Array:
        branch = self.attention(self.attention_norm(x), side, rngs)
        x = x + self.drop_path(_scaled(branch, self.attention_scale), rngs=rngs)
        branch = self.mlp(self.mlp_norm(x), rngs)
        return x + self.drop_path(_scaled(branch, self.mlp_scale), rngs=rngs)


def _scaled(x: jax.Array, scale: LayerScale | None) -> jax.Array:
    return x if scale is None else scale(x)
