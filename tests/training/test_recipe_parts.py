"""The recipe inside the step: batch norm in groups, MESA, skipped steps, frozen modules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import BatchNorm
from fastervit_jax.training.finetuning import (
    check_frozen,
    is_frozen,
    learning_rate_multiplier,
)
from fastervit_jax.training.step import MESA_FACTOR
from tests.quick_compilation import quick_jit
from tests.training import test_step as small


def test_batch_norm_in_groups_is_the_groups_one_by_one():
    images = np.random.default_rng(0).standard_normal((8, 4, 4, 3)).astype(np.float32)
    images *= np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    together = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    together.group_size = 4
    outputs, means, variances = [], [], []
    for part in (images[:4], images[4:]):
        alone = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
        outputs.append(alone(part))
        means.append(alone.mean[...])
        variances.append(alone.var[...])
    result = together(images)
    np.testing.assert_allclose(result, np.concatenate(outputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.mean[...], np.mean(means, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together.var[...], np.mean(variances, 0), rtol=1e-5)
    ungrouped = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert np.abs(result - ungrouped(images)).max() > 0.1


def _compiled_step(**changes):
    settings = dataclasses.replace(small.SETTINGS, **changes)
    mesh = small.make_mesh(devices=jax.devices()[:1])
    step = small.make_train_step(small.PureModel(small.MODEL), small.OPTIMIZER, settings, mesh)
    step = quick_jit(step)
    (batch,) = small._batches(1)
    return lambda state: step(state, small.place_batch(batch, mesh))


def _state(step: int, *, average_scale: float = 1.0):
    """A state after some steps, the moving average's head scaled."""
    state = small.new_state(*small.arrays_of(small.MODEL), small.OPTIMIZER)
    average = {
        name: array * (average_scale if name.startswith("head.kernel") else 1)
        for name, array in state.average.items()
    }
    return dataclasses.replace(state, average=average, step=jnp.asarray(step, state.step.dtype))


def test_mesa_adds_its_divergence_from_its_start_on():
    plain, mesa = _compiled_step(), _compiled_step(mesa_weight=0.5, mesa_start=1)
    for step in (0, 1):
        without, expected = plain(_state(step))
        state, metrics = mesa(_state(step, average_scale=30.0))
        added = 0.5 * MESA_FACTOR * float(metrics["mesa"])
        assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]) + added, rel=1e-5)
        moved = np.abs(state.params["head.kernel"] - without.params["head.kernel"]).max()
        if step == 0:
            assert float(metrics["mesa"]) == 0
            assert moved < 1e-6
        else:
            assert float(metrics["mesa"]) > 1e-4
            assert moved > 1e-6


def test_a_step_without_finite_gradients_changes_nothing_but_the_counts():
    state = _state(0)
    broken = {**state.params, "head.bias": state.params["head.bias"].at[0].set(jnp.nan)}
    state = dataclasses.replace(state, params=broken)
    new, metrics = _compiled_step()(state)
    assert int(metrics["skipped"]) == int(new.skipped) == int(new.skipped_in_a_row) == 1
    assert int(new.step) == 1
    for part in ("params", "statistics", "average"):
        for name, array in getattr(state, part).items():
            np.testing.assert_array_equal(getattr(new, part)[name], array)


def test_layer_decay_grows_towards_the_head():
    network = small.NETWORK
    names = [
        "stem.conv1.kernel",
        "stages.0.blocks.0.conv1.kernel",
        "downsamples.0.conv.kernel",
        "stages.1.blocks.0.conv1.kernel",
        "stages.2.carrier_tokenizer.convolution.kernel",
        "stages.3.blocks.0.window_layer.mlp.expand.kernel",
        "head.kernel",
    ]
    found = [learning_rate_multiplier(name, network, 0.5) for name in names]
    assert found == [0.5**5, 0.5**4, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]


def test_frozen_modules_are_named_by_prefix():
    names = list(small.arrays_of(small.MODEL)[0])
    assert is_frozen("stages.0.blocks.0.conv1.kernel", ("stages.0",))
    assert not is_frozen("stages.1.blocks.0.conv1.kernel", ("stages.0",))
    check_frozen(names, ("stem", "stages.0"))
    with pytest.raises(ValueError, match=r"stages\.9"):
        check_frozen(names, ("stages.9",))
    with pytest.raises(ValueError, match="nothing to train"):
        check_frozen(names, ("stem", "stages", "downsamples", "norm", "head"))
