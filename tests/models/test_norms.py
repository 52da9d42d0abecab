"""Norms against float64: variances in one pass or two, scales; biases that a norm takes away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import BatchNorm, layer_norm
from tests.small.network import small_model

# One pass over float32 would lose mean² · 2⁻²⁴, half of the variance of 1 at a mean of 3000.
CASES = [(jnp.bfloat16, 30.0), (jnp.float32, 3000.0)]


def _values(dtype, mean: float) -> jax.Array:
    return (mean + jax.random.normal(jax.random.key(0), (64, 8, 8, 16))).astype(dtype)


@pytest.mark.parametrize(("dtype", "mean"), CASES)
def test_batch_norm(dtype, mean):
    x = _values(dtype, mean)
    norm = BatchNorm(16, epsilon=1e-5, dtype=dtype, rngs=nnx.Rngs(0))
    out = norm(x)
    exact = np.asarray(x, np.float64).reshape(-1, 16)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * exact.var(0, ddof=1), rtol=1e-4)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(
        np.asarray(out, np.float64).reshape(-1, 16), expected, rtol=1e-2, atol=2e-2
    )


@pytest.mark.parametrize(("dtype", "mean"), CASES)
def test_layer_norm(dtype, mean):
    x = _values(dtype, mean)
    out = layer_norm(16, epsilon=1e-5, dtype=dtype, rngs=nnx.Rngs(0))(x)
    exact = np.asarray(x, np.float64)
    deviation = np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    expected = (exact - exact.mean(-1, keepdims=True)) / deviation
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1e-2, atol=2e-2)


def test_a_layer_norms_scale_is_not_rounded_to_16_bits():
    scale = 1 + 2**-8  # In bfloat16: 1.
    x = _values(jnp.bfloat16, 0.0)
    norm = layer_norm(16, epsilon=1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.full(16, scale, jnp.float32)
    exact = np.asarray(x, np.float64)
    exact -= exact.mean(-1, keepdims=True)
    expected = np.abs(exact / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)).mean()
    # Rounding of single results averages out.
    assert np.abs(np.asarray(norm(x), np.float64)).mean() / expected == pytest.approx(scale, 5e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_bias_that_a_batch_norm_takes_away_has_no_gradient(training):
    """Against a difference of losses: zero in training, and not where statistics are kept."""
    block = small_model().stages[0].blocks[0]
    block.set_attributes(use_running_average=not training)
    structure, params, rest = nnx.split(block, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 8))

    def loss(bias):
        block = nnx.merge(structure, params, rest, copy=True)
        block.conv1.bias[...] = bias
        return jnp.sum(jnp.sin(block(x)))

    bias, along = block.conv1.bias[...], jnp.linspace(-1.0, 1.0, 8)
    gradient = jax.grad(loss)(bias)
    difference = (loss(bias + 1e-2 * along) - loss(bias - 1e-2 * along)) / 2e-2
    np.testing.assert_allclose(jnp.vdot(gradient, along), difference, rtol=1e-2, atol=2e-2)
    assert bool(jnp.any(gradient != 0)) is not training
