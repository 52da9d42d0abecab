"""The GELU against SciPy's normal distribution in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from fastervit_jax.analysis import topology
from fastervit_jax.models.layers import fitted_gelu, gelu, recomputed_gelu, tanh_gelu
from fastervit_jax.models.transformer import Mlp
from fastervit_jax.parallel.compiler import compiler_options
from fastervit_jax.parallel.mesh import make_mesh, replicated
from tests.gpu_compiler import needs_gpu_compiler
from tests.small.network import small_model


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


@pytest.mark.parametrize("function", [gelu, recomputed_gelu, tanh_gelu])
def test_every_bfloat16(function):
    """All finite numbers there are: a rounding to eight digits, and what the fit costs.

    The values of the tanh form are tested in float32, in which a GPU computes them.
    """
    x = np.arange(2**16, dtype=np.uint16).view(jnp.bfloat16)
    x = x[np.isfinite(x.astype(np.float32))]
    values, pullback = jax.vjp(function, jnp.asarray(x))
    (gradients,) = pullback(jnp.full_like(values, 0.5))
    assert values.dtype == gradients.dtype == jnp.bfloat16
    x, values, gradients = (np.asarray(a).astype(np.float64) for a in (x, values, gradients))
    exact = x * norm.cdf(x)
    if function is not tanh_gelu:
        assert np.all(np.abs(values - exact) <= 3e-5 + 2.0**-8 * np.abs(exact))
    slope = norm.cdf(x) + x * norm.pdf(x)
    assert np.all(np.abs(2 * gradients - slope) <= 3e-4 + 2.0**-8 * np.abs(slope))


def test_the_tanh_form():
    """What a product on a GPU computes."""
    x = np.linspace(-9, 9, 36001).astype(np.float32)
    values = tanh_gelu(jnp.asarray(x))
    x = x.astype(np.float64)
    np.testing.assert_allclose(values, x * norm.cdf(x), atol=5e-4, rtol=0)


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


@needs_gpu_compiler
def test_products_of_a_gpu_compute_it():
    """In training too, where the product also returns its value before GELU."""
    mesh = make_mesh(devices=topology.devices("h100"))
    model = small_model(dtype=jnp.bfloat16)
    mlp = next(module for _, module in nnx.iter_modules(model) if isinstance(module, Mlp))
    graph, state = nnx.split(mlp)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(mesh))

    def loss(state, x):
        return (nnx.merge(graph, state)(x).astype(jnp.float32) ** 2).sum()

    state = jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype), state)
    x = array((64, 53, mlp.expand.in_features), jnp.bfloat16)
    step = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=compiler_options(mesh))
    with topology.lowering_for(mesh.devices.flat[0]):
        lowered = step.lower(state, x)
    assert "GELU_AUX" in lowered.compile().as_text()
