"""The GELU against SciPy's normal distribution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fastervit_jax.models.layers import fitted_gelu, gelu, tanh_gelu


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 2e-15), (np.float32, 8e-7)])
def test_values_and_slopes(dtype, tolerance):
    x = np.linspace(-12, 12, 4801).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        values, pullback = jax.vjp(gelu, jnp.asarray(x))
        (slopes,) = pullback(jnp.ones_like(values))
        values, slopes = np.asarray(values), np.asarray(slopes)
    assert values.dtype == slopes.dtype == dtype
    x = x.astype(np.float64)
    np.testing.assert_allclose(values, x * norm.cdf(x), rtol=tolerance, atol=tolerance)
    slope = norm.cdf(x) + x * norm.pdf(x)
    np.testing.assert_allclose(slopes, slope, rtol=tolerance, atol=2 * tolerance)


def test_every_bfloat16():
    """All finite numbers there are: a rounding to eight digits, and what the fit costs."""
    x = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    x = x[np.isfinite(x.astype(np.float32))]
    values, pullback = jax.vjp(gelu, jnp.asarray(x))
    (slopes,) = pullback(jnp.ones_like(values))
    assert values.dtype == slopes.dtype == jnp.bfloat16
    x, values, slopes = (np.asarray(a).astype(np.float64) for a in (x, values, slopes))
    exact = x * norm.cdf(x)
    assert np.all(np.abs(values - exact) <= 3e-5 + 2.0**-8 * np.abs(exact))
    slope = norm.cdf(x) + x * norm.pdf(x)
    assert np.all(np.abs(slopes - slope) <= 3e-4 + 2.0**-8 * np.abs(slope))


def test_the_tanh_form_and_its_gradient():
    """What GPUs compute: within 5e-4; its slope within 2e-3."""
    x = np.linspace(-9, 9, 36001).astype(np.float32)
    values, pullback = jax.vjp(tanh_gelu, jnp.asarray(x))
    (slopes,) = pullback(jnp.full_like(values, 3))
    x = x.astype(np.float64)
    np.testing.assert_allclose(values, x * norm.cdf(x), atol=5e-4, rtol=0)
    np.testing.assert_allclose(slopes / 3, norm.cdf(x) + x * norm.pdf(x), atol=2e-3, rtol=0)
    _, plain = jax.vjp(lambda x: jax.nn.gelu(x, approximate=True), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slopes, plain(jnp.full_like(values, 3))[0], atol=1e-6, rtol=0)


def test_the_fit_is_as_good_as_it_says():
    """Before any rounding to bfloat16."""
    x = np.linspace(-9, 9, 360001).astype(np.float32)
    fitted = np.asarray(fitted_gelu(jnp.asarray(x)))
    x = x.astype(np.float64)
    assert np.abs(fitted - x * norm.cdf(x)).max() < 3e-5


def test_float16_loses_no_more_than_its_rounding():
    x = np.linspace(-12, 12, 4801).astype(np.float16)
    values = np.asarray(gelu(jnp.asarray(x)))
    assert values.dtype == np.float16
    x = x.astype(np.float64)
    np.testing.assert_allclose(values, x * norm.cdf(x), rtol=2.0**-11, atol=1e-6)
