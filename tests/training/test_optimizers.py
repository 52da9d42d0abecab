"""The optimizers' own properties; tests/reference compares them with torch's and timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fastervit_jax.models.pure_model import flatten
from fastervit_jax.training.optimizers import (
    by_path,
    clip_by_global_norm_like_torch,
    decay_mask,
    make_optimizer,
)

NAMES = ["adamw", "lamb", "sgd"]


class Net(nnx.Module):
    """One of each kind of parameter that FasterViT has."""

    def __init__(self, rngs):
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.gamma = nnx.Param(jnp.ones(4))


def params_of_net():
    return nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)[1]


def paths(tree):
    names = []
    jax.tree.map(lambda name: names.append(name), by_path(lambda path: path)(tree))
    return names


def gradients_like(params, seed=0, scale=1.0):
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, arrays)


def five_steps(optimizer, params):
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for seed in range(5):
        updates, state = step(gradients_like(params, seed), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def pure(params):
    return nnx.to_pure_dict(params)


@pytest.mark.parametrize(
    "as_params", [lambda params: params, pure, flatten], ids=["nnx.State", "dict", "flat dict"]
)
def test_decay_mask(as_params):
    params = as_params(params_of_net())
    mask = dict(zip(paths(params), jax.tree.leaves(decay_mask(params)), strict=True))
    assert {path for path, decayed in mask.items() if decayed} == {
        "depthwise.kernel",
        "blocks.0.kernel",
        "blocks.1.kernel",
    }
    assert {"norm.scale", "norm.bias", "gamma", "depthwise.bias"} < mask.keys()


def test_a_bias_of_two_dimensions_does_not_decay():
    params = {"layer.bias": jnp.ones((2, 2)), "layer.kernel": jnp.ones((2, 2))}
    assert decay_mask(params) == {"layer.bias": False, "layer.kernel": True}


@pytest.mark.parametrize("name", NAMES)
def test_state_is_float32_and_nnx_state_gives_what_a_dict_gives(name):
    optimizer = make_optimizer(name, learning_rate=0.01, weight_decay=0.1)
    params = params_of_net()
    from_state, optimizer_state = five_steps(optimizer, params)
    from_dict, _ = five_steps(optimizer, pure(params))
    jax.tree.map(np.testing.assert_array_equal, pure(from_state), from_dict)
    moments = [leaf for leaf in jax.tree.leaves(optimizer_state) if leaf.ndim > 0]
    assert moments
    assert {moment.dtype for moment in moments} == {np.dtype("float32")}


def test_schedule_is_asked_with_the_number_of_updates_made():
    optimizer = make_optimizer(
        "sgd", learning_rate=lambda count: 10.0**count, weight_decay=0, momentum=0, clip_norm=None
    )
    params, gradient = {"kernel": jnp.zeros((1, 1))}, {"kernel": jnp.ones((1, 1))}
    state = optimizer.init(params)
    for expected in (-1, -10, -100):
        updates, state = optimizer.update(gradient, state, params)
        assert float(updates["kernel"][0, 0]) == pytest.approx(expected)


def test_clipping():
    clip = clip_by_global_norm_like_torch(5.0)
    gradient = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.0, 12.0])}
    clipped, _ = clip.update(gradient, clip.init(None))
    np.testing.assert_allclose(clipped["b"][1], 12 * 5 / (13 + 1e-6), rtol=1e-6)
    small = jax.tree.map(lambda g: g / 4, gradient)
    unchanged, _ = clip.update(small, clip.init(None))
    jax.tree.map(np.testing.assert_array_equal, unchanged, small)


@pytest.mark.parametrize("name", NAMES)
def test_layer_scales_multiply_update_and_decay(name):
    params = pure(params_of_net())
    settings = dict(learning_rate=0.01, weight_decay=0.1)
    plain = make_optimizer(name, **settings)
    scaled = make_optimizer(
        name, **settings, layer_scales=by_path(lambda path: 0.5 if "blocks.0" in path else 1.0)
    )
    updates = [
        optimizer.update(gradients_like(params), optimizer.init(params), params)[0]
        for optimizer in (plain, scaled)
    ]
    for path, plain_update, scaled_update in zip(
        paths(params), *map(jax.tree.leaves, updates), strict=True
    ):
        factor = 0.5 if path.startswith("blocks.0.") else 1.0
        np.testing.assert_array_equal(scaled_update, plain_update * factor)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask_as", ["function", "tree"])
def test_frozen_parameters_stay_and_hold_no_state(name, mask_as):
    params = params_of_net()
    frozen = by_path(lambda path: path.startswith(("depthwise", "norm")))
    settings = dict(learning_rate=0.01, weight_decay=0.1)
    optimizer = make_optimizer(
        name, **settings, frozen=frozen if mask_as == "function" else frozen(params)
    )
    after, state = five_steps(optimizer, params)
    before, after = pure(params), pure(after)
    for part in ("depthwise", "norm"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert (np.asarray(before["gamma"]) != np.asarray(after["gamma"])).all()

    # As if the model consisted of the other parameters alone: no moments, no share in the norm.
    trained = {key: before[key] for key in ("blocks", "gamma")}
    alone = make_optimizer(name, **settings)
    state_alone = alone.init(trained)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(state_alone))
    updates, _ = optimizer.update(gradients_like(params), optimizer.init(params), params)
    gradients = {key: pure(gradients_like(params))[key] for key in trained}
    updates_alone, _ = alone.update(gradients, state_alone, trained)
    for key in trained:
        jax.tree.map(np.testing.assert_array_equal, pure(updates)[key], updates_alone[key])


def test_state_survives_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = params_of_net()
    optimizer = make_optimizer(
        "lamb", learning_rate=0.01, weight_decay=0.1, frozen=by_path(lambda path: "norm" in path)
    )
    _, state = five_steps(optimizer, params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", optimizer.init(params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name="adam"), "Invalid optimizer 'adam'"),
        (dict(weight_decay=-0.1), "Invalid weight_decay"),
        (dict(weight_decay=float("nan")), "Invalid weight_decay"),
        (dict(betas=(0.9, 1.0)), "Invalid betas"),
        (dict(betas=(0.9,)), "Invalid betas"),
        (dict(epsilon=-1.0), "Invalid epsilon"),
        (dict(momentum=1.0), "Invalid momentum"),
        (dict(clip_norm=0.0), "Invalid clip_norm"),
    ],
)
def test_bad_settings_are_refused(change, message):
    settings = {**dict(name="adamw", learning_rate=0.1, weight_decay=0.1), **change}
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings.pop("name"), **settings)
