"""Bilinear sampling against transformers' (recorded by tests/reference/record_transformers.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.detection.sampling import sample, sample_by_gathers, sample_by_products
from fastervit_jax.models.layouts import traced_for
from tests.detection.golden_files import GOLDEN

SHAPES = ((7, 9), (4, 5), (2, 3))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_values_and_gradients(platform):
    """Products (CPU, TPU) and gathers (GPU), in float64; also outside of maps."""
    with np.load(GOLDEN / "sampling.npz") as file:
        recorded = dict(file)
    with jax.enable_x64(True), traced_for(platform):
        arguments = [jnp.asarray(recorded[name]) for name in ("values", "points", "weights")]

        def run(values, points, weights):
            out = sample(values, SHAPES, points, weights)
            return out.reshape(*out.shape[:2], -1)

        out, backward = jax.vjp(run, *arguments)
        gradients = backward(jnp.asarray(recorded["gradient"]))
    np.testing.assert_allclose(out, recorded["out"], rtol=0, atol=1e-12)
    for name, ours in zip(("values", "points", "weights"), gradients, strict=True):
        theirs = recorded[f"gradient_{name}"]
        if name == "points":  # at the centers of pixels, rounding decides between two slopes
            ours, theirs = ours[:, 1:], theirs[:, 1:]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11, err_msg=name)


def test_platforms_take_their_own_arrangement():
    """The program for CPUs scatters nothing in its gradient; that for GPUs has gathers."""
    values = jnp.zeros((1, 12, 2, 4))
    points, weights = jnp.full((1, 3, 2, 1, 4, 2), 0.4), jnp.ones((1, 3, 2, 1, 4))
    text = {}
    for platform in ("cpu", "cuda"):
        with traced_for(platform):
            program = jax.make_jaxpr(lambda *each: sample(each[0], ((3, 4),), *each[1:]))
            text[platform] = str(program(values, points, weights))
    assert "gather" in text["cuda"]
    assert "gather" not in text["cpu"]


def test_large_maps_are_gathered():
    values = jnp.zeros((1, 2000, 1, 1))
    points, weights = jnp.full((1, 1, 1, 1, 1, 2), 0.4), jnp.ones((1, 1, 1, 1, 1))
    with traced_for("cpu"):
        program = jax.make_jaxpr(lambda *each: sample(each[0], ((40, 50),), *each[1:]))
    assert "gather" in str(program(values, points, weights))


def test_bfloat16():
    generator = np.random.default_rng(0)
    values = generator.standard_normal((2, 63, 3, 8))
    pixels, weights = generator.uniform(-1, 9, (2, 5, 3, 4, 2)), generator.random((2, 5, 3, 4))
    for function in (sample_by_gathers, sample_by_products):
        exact = function(*_arguments(values, pixels, weights, jnp.float32))
        rounded = function(*_arguments(values, pixels, weights, jnp.bfloat16))
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.05)


def _arguments(values, pixels, weights, dtype):
    wide = jnp.asarray(pixels, jnp.float32), jnp.asarray(weights, jnp.float32)
    return jnp.asarray(values, dtype), (7, 9), *wide
