"""Bilinear sampling against transformers' (recorded by tests/reference/record_transformers.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.detection import sampling
from fastervit_jax.detection.sampling import (
    sample,
    sample_by_gathers,
    sample_by_levels,
    sample_in_turn,
)
from fastervit_jax.models.layouts import traced_for
from tests.detection.golden_files import GOLDEN
from tests.quick_compilation import quick_jit

SHAPES = ((7, 9), (4, 5), (2, 3))


@pytest.mark.parametrize("platform, dense", [("cpu", 0), ("cuda", 0), ("tpu", 0), ("tpu", 1024)])
def test_values_and_gradients(platform, dense, monkeypatch):
    """Loop (CPU), gathers (GPU) and products (TPU), in float64; also outside of maps."""
    monkeypatch.setattr(sampling, "DENSE_TOKENS", dense)
    with np.load(GOLDEN / "sampling.npz") as file:
        recorded = dict(file)
    with jax.enable_x64(True), traced_for(platform):
        arguments = [jnp.asarray(recorded[name]) for name in ("values", "points", "weights")]

        def run(values, points, weights):
            out = sample(values, SHAPES, points, weights)
            return out.reshape(*out.shape[:2], -1)

        @quick_jit
        def both(gradient, *arguments):
            out, backward = jax.vjp(run, *arguments)
            return out, backward(gradient)

        out, gradients = both(jnp.asarray(recorded["gradient"]), *arguments)
    np.testing.assert_allclose(out, recorded["out"], rtol=0, atol=1e-12)
    for name, ours in zip(("values", "points", "weights"), gradients, strict=True):
        theirs = recorded[f"gradient_{name}"]
        if name == "points":  # at the centers of pixels, rounding decides between two slopes
            ours, theirs = ours[:, 1:], theirs[:, 1:]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_large_maps(platform):
    """On TPUs they take another path than small ones; both give the same."""
    shapes = ((40, 30), (20, 15))
    generator = np.random.default_rng(0)
    values = generator.standard_normal((1, 1500, 2, 4))
    points, weights = generator.uniform(-0.1, 1.1, (1, 6, 2, 2, 4, 2)), generator.random(96)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(values), jnp.asarray(points), weights.reshape(1, 6, 2, 2, 4)]
        results = []
        for name in (platform, "cuda"):
            with traced_for(name):
                results.append(sample(arguments[0], shapes, *arguments[1:]))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [sample_by_gathers, sample_in_turn, sample_by_levels])
def test_bfloat16(function):
    generator = np.random.default_rng(0)
    values, weights = generator.standard_normal((2, 63, 3, 8)), generator.random((2, 5, 3, 1, 4))
    pixels = jnp.asarray(generator.uniform(-1, 9, (2, 5, 3, 1, 4, 2)), jnp.float32)
    weights = jnp.asarray(weights, jnp.float32)
    exact = function(jnp.asarray(values, jnp.float32), [(7, 9)], pixels, weights)
    rounded = function(jnp.asarray(values, jnp.bfloat16), [(7, 9)], pixels, weights)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.05)
