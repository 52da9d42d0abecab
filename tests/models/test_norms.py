"""Variances in one pass (16 bits) and in two (wider types), against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import BatchNorm, layer_norm

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
