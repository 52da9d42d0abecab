"""The transformer layer that windows and carrier tokens both go through."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import (
    Dropout,
    DropPath,
    full_precision,
    layer_norm,
    linear,
    mlp_gelu,
)
from fastervit_jax.models.layouts import attend, merge_heads, split_heads
from fastervit_jax.models.position import RelativePositionBias


class Attention(nnx.Module):
    """Multi-head self-attention with a relative position bias (the reference's `WindowAttention`).

    Tokens are [N, T, C]. The last side² of the T tokens form a square, whose relative positions the
    bias knows.
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
        einsum = functools.partial(jnp.einsum, preferred_element_type=full_precision(self.dtype))

        def formula(x, qkv, bias):
            q, k, v = split_heads(x, *qkv, self.heads)  # [N, heads, T, d] each
            logits = einsum("nhqd,nhkd->nhqk", q, k) * self.scale + bias
            weights, total = unnormalized_softmax(logits)
            weights = self.weights_dropout(weights, rngs=rngs).astype(self.dtype)
            return einsum("nhqk,nhkd->nhqd", weights, v) / total

        inputs = x.astype(self.dtype), self.qkv.arrays(), self.position_bias(x.shape[1], side)
        if self.weights_dropout.active:
            values = formula(*inputs)
        else:
            values = attend(formula, *inputs, self.heads, self.scale)
        x = merge_heads(values.astype(self.dtype), *self.projection.arrays())
        return self.projection_dropout(x, rngs=rngs)


def unnormalized_softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Exponentials and their sum over the last axis: softmax is one divided by the other.

    The division can wait until the values are summed, because there are fewer values than weights.
    """
    exponentials = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return exponentials, exponentials.sum(axis=-1, keepdims=True)


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them, on tokens [N, T, C]."""

    def __init__(self, config: FasterViTConfig, width: int, *, dtype, rngs: nnx.Rngs):
        hidden = int(width * config.mlp_ratio)
        self.expand = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.drop_rate)

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.dropout(mlp_gelu(self.expand(x)), rngs=rngs)
        return self.dropout(self.contract(x), rngs=rngs)


class LayerScale(nnx.Module):
    """Multiplies each channel by a learned factor (Touvron et al., 2021)."""

    def __init__(self, initial: float, width: int):
        self.gamma = nnx.Param(jnp.full(width, initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


def layer_scale(initial: float | None, width: int) -> "LayerScale | None":
    """A layer scale, or None where the configuration has none."""
    return None if initial is None else LayerScale(initial, width)


class TransformerLayer(nnx.Module):
    """Attention, then an MLP, each with a norm before it and added to x: [N, T, C] → same.

    The last side² of the T tokens form a square, whose positions the attention knows. Drop path
    drops a branch for one entry of the first axis: the carriers of one image, or one window.
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
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: jax.Array, side: int, rngs: nnx.Rngs | None = None) -> jax.Array:
        branch = self.attention(self.attention_norm(x), side, rngs)
        x = x + self.drop_path(_scaled(branch, self.attention_scale), rngs=rngs)
        branch = self.mlp(self.mlp_norm(x), rngs)
        return x + self.drop_path(_scaled(branch, self.mlp_scale), rngs=rngs)


def _scaled(x: jax.Array, scale: LayerScale | None) -> jax.Array:
    return x if scale is None else scale(x)
