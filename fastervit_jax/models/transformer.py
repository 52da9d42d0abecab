"""The transformer layer that windows and carrier tokens both go through."""

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import (
    Dropout,
    DropPath,
    for_all_abreast,
    full_precision,
    gelu,
    layer_norm,
    linear,
)
from fastervit_jax.models.position import RelativePositionBias


class Attention(nnx.Module):
    """Multi-head self-attention with a relative position bias (the reference's `WindowAttention`).

    Tokens are [N, T, C]; the last side² of the T form a square and know each other's positions.

    Attributes:
        platform: what it is to run on, by which tokens lie in memory: it changes speed and, in
            the last digit, rounding. To compile for TPUs elsewhere: `lay_out(model, "tpu")`.
            "tpu": query, key and value are [N, heads, d, T], elsewhere [N, T, heads, d]. TPUs lay
            out the last axis in rows of 128: those of a head's few channels would be mostly empty,
            and parting and turning one large product is a copy of it.
            "cpu": linear layers get tokens as rows of a matrix (`as_rows`).
            Anything else: neither.
    """

    def __init__(self, config: FasterViTConfig, width: int, heads: int, *, dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.scale = config.qk_scale or (width // heads) ** -0.5
        self.dtype = dtype
        self.platform = jax.default_backend()
        self.qkv = linear(width, 3 * width, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.position_bias = RelativePositionBias(heads, dtype=dtype, rngs=rngs)
        self.weights_dropout = Dropout(config.attn_drop_rate)
        self.projection = linear(width, width, dtype=dtype, rngs=rngs)
        self.projection_dropout = Dropout(config.drop_rate)

    @property
    def tokens_last(self) -> bool:
        """Whether query, key and value have their tokens in the last axis."""
        return self.platform == "tpu"

    @jax.named_scope("attention")
    def __call__(self, x: jax.Array, side: int, rngs: nnx.Rngs | None = None) -> jax.Array:
        query, key, value = self._by_head(x)
        queries, keys = ("nhdq", "nhdk") if self.tokens_last else ("nqhd", "nkhd")
        wide = full_precision(self.dtype)
        logits = jnp.einsum(f"{queries},{keys}->nhqk", query, key, preferred_element_type=wide)
        logits = logits * self.scale + self.position_bias(x.shape[1], side)
        exponentials = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        kept = self.weights_dropout(exponentials, rngs=rngs).astype(self.dtype)
        mixed = jnp.einsum(f"nhqk,{keys}->{queries}", kept, value, preferred_element_type=wide)
        # Softmax's division, put off until here: there are fewer mixed values than weights.
        sums = exponentials.sum(axis=-1)
        sums = sums[:, :, None] if self.tokens_last else sums.swapaxes(1, 2)[..., None]
        x = self._projected((mixed / sums).astype(self.dtype))
        return self.projection_dropout(x, rngs=rngs)

    def _by_head(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value: [N, heads, d, T] by a product each, or [N, T, heads, d] by one."""
        if not self.tokens_last:
            parts = self.qkv(as_rows(x, self.platform)).reshape(*x.shape[:2], 3, self.heads, -1)
            return parts[:, :, 0], parts[:, :, 1], parts[:, :, 2]
        kernel, bias = self._arrays(self.qkv)
        kernel = kernel.reshape(len(kernel), 3, self.heads, -1)
        query, key, value = (
            jnp.einsum("ntc,chd->nhdt", x.astype(self.dtype), kernel[:, part]) for part in range(3)
        )
        if bias is None:
            return query, key, value
        bias = bias.reshape(3, self.heads, -1, 1)
        return query + bias[0], key + bias[1], value + bias[2]

    def _projected(self, mixed: jax.Array) -> jax.Array:
        """All heads' values through the last linear layer: [N, T, C]."""
        if not self.tokens_last:
            n, tokens, heads, channels = mixed.shape
            mixed = mixed.reshape(n, tokens, heads * channels)
            return self.projection(as_rows(mixed, self.platform)).reshape(mixed.shape)
        kernel, bias = self._arrays(self.projection)
        kernel = kernel.reshape(self.heads, -1, kernel.shape[-1])
        return jnp.einsum("nhdt,hdc->ntc", mixed, kernel) + bias

    def _arrays(self, layer: nnx.Linear) -> tuple[jax.Array, jax.Array | None]:
        """A linear layer's kernel and bias, in the type of the computation."""
        bias = layer.bias[...].astype(self.dtype) if layer.bias is not None else None
        return layer.kernel[...].astype(self.dtype), bias


def as_rows(tokens: jax.Array, platform: str) -> jax.Array:
    """Tokens [N, T, C] as a matrix [N·T, C] for a linear layer on a CPU, elsewhere as they are.

    XLA for CPU turns what a gradient of the kernel is made of where it sums over two axes, together
    with all that leads there. On TPUs, which pad the T tokens, the matrix would be a copy.
    """
    return tokens.reshape(-1, tokens.shape[-1]) if platform == "cpu" else tokens


class Mlp(nnx.Module):
    """Two linear layers with an exact (erf) GELU between them, on tokens [N, T, C].

    Attributes:
        platform: what it is to run on, as in `Attention`.
    """

    def __init__(self, config: FasterViTConfig, width: int, *, dtype, rngs: nnx.Rngs):
        hidden = int(width * config.mlp_ratio)
        self.platform = jax.default_backend()
        self.expand = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = linear(hidden, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.drop_rate)

    @jax.named_scope("mlp")
    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        shape = x.shape
        x = gelu(self.expand(as_rows(x, self.platform)))
        x = self.contract(self.dropout(x, rngs=rngs))
        return self.dropout(x, rngs=rngs).reshape(shape)


class LayerScale(nnx.Module):
    """Multiplies each channel by a learnt factor (Touvron et al., 2021)."""

    def __init__(self, initial: float, width: int):
        self.gamma = nnx.Param(jnp.full(width, initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * for_all_abreast(self.gamma[...].astype(x.dtype), x.shape[-1])


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
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: jax.Array, side: int, rngs: nnx.Rngs | None = None) -> jax.Array:
        branch = self.attention(self.attention_norm(x), side, rngs)
        x = x + self.drop_path(_scaled(branch, self.attention_scale), rngs=rngs)
        branch = self.mlp(self.mlp_norm(x), rngs)
        return x + self.drop_path(_scaled(branch, self.mlp_scale), rngs=rngs)


def _scaled(x: jax.Array, scale: LayerScale | None) -> jax.Array:
    return x if scale is None else scale(x)
