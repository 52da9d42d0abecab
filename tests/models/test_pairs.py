"""Two images side by side: the same results as one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import layer_norm
from fastervit_jax.models.pairs import normalise, pair, unpair
from fastervit_jax.models.pure_model import PureModel, arrays_of
from tests.small.network import small_model


def test_pairs_are_neighbours():
    maps = jnp.arange(4 * 2 * 3 * 5).reshape(4, 2, 3, 5)
    pairs = pair(maps)
    np.testing.assert_array_equal(pairs[1], np.concatenate([maps[2], maps[3]], axis=-1))
    np.testing.assert_array_equal(unpair(pairs), maps)


def _model(*, pairs: bool, dtype=jnp.float64, group_size: int | None = None, **options):
    size = {"resolution": 64, "window_size": (2, 2, 2, 2), "depths": (2, 1, 1, 1)}
    model = small_model(dtype=dtype, drop_path_rate=0.5, **size, **options)
    model.set_attributes(pairs=pairs, group_size=group_size)
    return model


def _training(model, images, frozen=()):
    """A function that gives gradients, logits and moved statistics, and its parameters."""
    pure = PureModel(model, frozen)
    params, statistics = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), arrays_of(model))

    def loss(params):
        logits, moved = pure.train(params, statistics, images, jax.random.key(2))
        return jnp.sum(logits * jnp.sin(logits)), (logits, moved)

    return jax.grad(loss, has_aux=True), params


def _makes_pairs(model, images) -> bool:
    function, params = _training(model, images)
    return "64,64,6]" in str(jax.make_jaxpr(function)(params))


def _images(count: int, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(1), (count, 64, 64, 3), dtype)


@pytest.mark.parametrize(
    ("options", "frozen"),
    [({}, ()), ({"group_size": 2, "layer_scale_conv": 0.1}, ()), ({}, ("stages.0",))],
    ids=["whole batch", "groups", "a frozen stage"],
)
def test_training_is_the_same(options, frozen):
    with jax.enable_x64(True):
        results = []
        for pairs in (False, True):
            function, params = _training(_model(pairs=pairs, **options), _images(4), frozen)
            results.append(jax.tree.leaves(jax.jit(function)(params)))
        for one, two in zip(*results, strict=True):
            scale = np.maximum(1, np.abs(one).max())
            np.testing.assert_allclose(two / scale, one / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("images", "options", "pairs"),
    [
        (4, {}, True),
        (4, {"group_size": 2}, True),
        (3, {}, False),
        (6, {"group_size": 3}, False),
        (4, {"dim": 72}, False),
    ],
)
def test_when_images_go_in_pairs(images, options, pairs):
    with jax.enable_x64(True):
        images = _images(images)
        assert _makes_pairs(_model(pairs=True, **options), images) == pairs
        assert not _makes_pairs(_model(pairs=False, **options), images)


def test_inference_frozen_stems_and_deployed_networks_go_one_by_one():
    images = _images(2, jnp.float32)
    model = _model(pairs=True, dtype=jnp.float32)
    deployed = model.deploy()
    deployed.train()
    for network in (model, deployed):
        assert "64,64,6]" not in str(jax.make_jaxpr(network.__call__)(images))
    frozen = PureModel(model, frozen=["stem"])
    key = jax.random.key(0)
    program = jax.make_jaxpr(lambda images: frozen.train(*arrays_of(model), images, key))(images)
    assert "64,64,6]" not in str(program)


def test_features_are_of_single_images():
    images = _images(2, jnp.float32)

    def features(pairs):
        model = _model(pairs=pairs, dtype=jnp.float32)
        model.train()
        return model.features(images, rngs=nnx.Rngs(dropout=0))

    both = [jax.jit(features, static_argnums=0)(pairs) for pairs in (True, False)]
    for ours, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "precision"),
    [(jnp.bfloat16, 1e-2, "Precision.HIGH,"), (jnp.float32, 1e-4, "Precision.HIGHEST,")],
)
def test_layer_norm_of_pairs(dtype, tolerance, precision):
    """Against float64, with a mean of thirty deviations, and its gradient against one by one's."""
    maps = (30 + jax.random.normal(jax.random.key(0), (4, 5, 5, 16))).astype(dtype)
    norm = layer_norm(16, epsilon=1e-6, dtype=dtype, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.linspace(0.5, 2, 16)
    norm.bias[...] = jnp.linspace(-1, 1, 16)
    out, back = jax.vjp(lambda maps: unpair(normalise(norm, pair(maps))), maps)
    _, back_one = jax.vjp(lambda maps: norm(maps), maps)
    exact = np.asarray(maps, np.float64)
    deviation = np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    expected = (exact - exact.mean(-1, keepdims=True)) / deviation
    expected = expected * np.linspace(0.5, 2, 16) + np.linspace(-1, 1, 16)
    np.testing.assert_allclose(
        np.asarray(out, np.float64), expected, rtol=tolerance, atol=tolerance
    )
    # CPUs compute in float32 whatever they are asked for; TPUs do not.
    program = str(jax.make_jaxpr(lambda maps: normalise(norm, maps))(pair(maps)))
    asked = {"Precision.HIGH,", "Precision.HIGHEST,"}
    assert {word for word in asked if word in program} == {precision}
    gradient = jax.random.normal(jax.random.key(3), maps.shape).astype(dtype)
    ours, theirs = (np.asarray(f(gradient)[0], np.float64) for f in (back, back_one))
    np.testing.assert_allclose(ours, theirs, rtol=2 * tolerance, atol=3 * tolerance)
