"""Both layouts of attention against a plain softmax in NumPy, and against each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models import variant_config
from fastervit_jax.models.attention import Attention

WINDOWS, SIDE, IN_FRONT, WIDTH, HEADS = 3, 3, 2, 24, 4


def _attention(*, qkv_bias: bool, tokens_last: bool) -> Attention:
    config = dataclasses.replace(variant_config("faster_vit_0_224"), qkv_bias=qkv_bias)
    attention = Attention(config, WIDTH, HEADS, dtype=jnp.float64, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(attention, nnx.Param)):
        variable.set_value(jnp.asarray(random.standard_normal(variable.shape) / 4))
    attention.tokens_last = tokens_last
    return attention


def _expected(attention: Attention, x: np.ndarray) -> np.ndarray:
    def through(layer: nnx.Linear, x: np.ndarray) -> np.ndarray:
        product = x @ np.asarray(layer.kernel[...])
        return product if layer.bias is None else product + np.asarray(layer.bias[...])

    bias = np.asarray(attention.position_bias(x.shape[1], SIDE))
    out = np.empty_like(x)
    for window, tokens in enumerate(x):
        query, key, value = np.split(through(attention.qkv, tokens), 3, axis=-1)
        for head in range(HEADS):
            own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            logits = query[:, own] @ key[:, own].T / np.sqrt(WIDTH // HEADS) + bias[head]
            weights = np.exp(logits)
            weights /= weights.sum(axis=-1, keepdims=True)
            out[window, :, own] = weights @ value[:, own]
    return through(attention.projection, out)


def _square(attention: Attention, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = attention(x, SIDE)
    return jnp.sum(out**2), out


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_layouts(qkv_bias):
    random = np.random.default_rng(1)
    x = random.standard_normal((WINDOWS, IN_FRONT + SIDE**2, WIDTH))
    with jax.enable_x64(True):
        gradients = []
        for tokens_last in (False, True):
            attention = _attention(qkv_bias=qkv_bias, tokens_last=tokens_last)
            expected = _expected(attention, x)
            gradient, out = nnx.jit(nnx.grad(_square, has_aux=True))(attention, x)
            np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-10)
            gradients.append(nnx.to_flat_state(gradient))
        for (path, one), (_, other) in zip(*gradients, strict=True):
            np.testing.assert_allclose(one[...], other[...], rtol=1e-9, atol=1e-9, err_msg=path)
