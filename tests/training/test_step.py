"""The step: a pure function, the same on any mesh, and what it does to the state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.models import FasterViT, variant_config
from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.state import abstract_state, new_state, place_state
from fastervit_jax.training.classification import MESA_FACTOR, ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.quick_compilation import quick_jit, quickest_compilation

NETWORK = variant_config(
    "faster_vit_3_224",
    dim=8,
    in_dim=8,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 4, 4),
    resolution=64,
    window_size=(2, 2, 2, 2),
    num_classes=5,
    drop_path_rate=0.1,
    layer_scale=0.1,
)
SETTINGS = StepSettings(
    seed=3,
    ema_decay=0.9,
    objective=ClassificationObjective(
        AugmentationSettings(num_classes=5, group_size=2, erasing_probability=0.5)
    ),
)
# SGD, because Adam turns the rounding noise of gradients that are truly zero into whole steps.
OPTIMIZER = make_optimizer("sgd", learning_rate=0.05, weight_decay=0.01)


def _batches(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8),
            "label": rng.integers(0, 5, 16, np.int32),
        }
        for _ in range(count)
    ]


@functools.cache
def small_network() -> FasterViT:
    """A network of `NETWORK`, the same for all."""
    return FasterViT(NETWORK, rngs=nnx.Rngs(0))


@functools.cache
def _compiled_step(settings: StepSettings, mesh: jax.sharding.Mesh):
    step = make_train_step(PureModel(small_network()), OPTIMIZER, settings, mesh)
    step = compile_train_step(step, abstract_state(small_network(), OPTIMIZER, mesh), mesh)
    state = place_state(small_network(), OPTIMIZER, mesh)
    return step.lower(state, place_batch(_batches(1)[0], mesh)).compile(quickest_compilation())


def _run(steps: int, *, devices: int, **mesh_sizes):
    mesh = make_mesh(**mesh_sizes, devices=jax.devices()[:devices])
    step = _compiled_step(SETTINGS, mesh)
    state = place_state(small_network(), OPTIMIZER, mesh)
    losses = []
    for batch in _batches(steps):
        old = state
        state, metrics = step(state, place_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses, state, old


@pytest.fixture(scope="module")
def single():
    return _run(3, devices=1)


def test_old_state_is_donated(single):
    _, _, old = single
    assert all(array.is_deleted() for array in old.params.values())


def test_everything_moves(single):
    _, state, _ = single
    start = new_state(*arrays_of(small_network()), OPTIMIZER)
    assert int(state.step) == 3
    # The average moves by a tenth of that, which may be lost in rounding.
    for part in ("params", "statistics"):
        new, first = getattr(state, part), getattr(start, part)
        # Batch norm takes away what a bias before it adds: such a bias has no gradient.
        free = [name for name in new if not name.endswith(("conv1.bias", "conv2.bias"))]
        still = [name for name in free if np.array_equal(new[name], first[name])]
        assert not still, (part, still)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [dict(data=8), dict(fsdp=8), dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2)],
    ids=str,
)
def test_same_on_other_meshes(single, sizes):
    """In float32; in float64 one such mesh is tested at every change (test_meshes.py)."""
    _assert_same_run(single, _run(3, devices=8, **{"data": 1, **sizes}))


def _assert_same_run(run, other):
    np.testing.assert_allclose(other[0], run[0], rtol=1e-5)
    for name, array in run[1].ema.items():
        np.testing.assert_allclose(other[1].ema[name], array, rtol=2e-3, atol=2e-4, err_msg=name)


def test_state_is_split_on_the_mesh():
    state = place_state(small_network(), OPTIMIZER, make_mesh(data=2, fsdp=4))
    held = total = 0
    for array in jax.tree.leaves((state.params, state.optimizer, state.ema)):
        total += array.size
        held += array.addressable_shards[0].data.size
    assert held / total == pytest.approx(1 / 4, rel=0.05)


def _step_on_one_device(state, **changes):
    mesh = make_mesh(devices=jax.devices()[:1])
    objective = dataclasses.replace(SETTINGS.objective, **changes)
    step = _compiled_step(dataclasses.replace(SETTINGS, objective=objective), mesh)
    return step(state, place_batch(_batches(1)[0], mesh))


def _state(step: int, *, average_scale: float = 1.0):
    """A state after some steps, the EMA's head scaled."""
    state = place_state(small_network(), OPTIMIZER, make_mesh(devices=jax.devices()[:1]))
    average = {
        name: array * (average_scale if name.startswith("head.kernel") else 1)
        for name, array in state.ema.items()
    }
    return dataclasses.replace(state, ema=average, step=jnp.full_like(state.step, step))


def test_mesa_adds_its_divergence_from_its_start_on():
    for step in (0, 1):
        without, expected = _step_on_one_device(_state(step))
        state = _state(step, average_scale=30.0)
        state, metrics = _step_on_one_device(state, mesa_weight=0.5, mesa_start=1)
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
    before = jax.tree.map(np.array, state)  # the step takes its buffers
    new, metrics = _step_on_one_device(state)
    assert int(metrics["skipped"]) == int(new.skipped) == int(new.skipped_in_a_row) == 1
    assert int(new.step) == 1
    for part in ("params", "statistics", "ema"):
        for name, array in getattr(before, part).items():
            np.testing.assert_array_equal(getattr(new, part)[name], array)


def test_step_against_its_definition():
    """One step without drop path and augmentation, written out with plain optax."""
    network = variant_config("faster_vit_0_224", **{**_options(), "drop_path_rate": 0.0})
    settings = StepSettings(
        seed=0,
        ema_decay=0.9,
        objective=ClassificationObjective(
            AugmentationSettings(
                num_classes=5,
                group_size=16,
                mixing_probability=0.0,
                smoothing=0.1,
                erasing_probability=0.0,
            )
        ),
    )
    module = FasterViT(network, rngs=nnx.Rngs(1))
    params, statistics = arrays_of(module)
    state = new_state(params, statistics, OPTIMIZER)
    mesh = make_mesh(devices=jax.devices()[:1])
    step = make_train_step(PureModel(nnx.clone(module)), OPTIMIZER, settings, mesh)
    step = quick_jit(step)
    (batch,) = _batches(1)
    new, metrics = step(state, place_batch(batch, mesh))

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = jnp.asarray((batch["image"] / 255 - mean) / std, jnp.float32)
    targets = jax.nn.one_hot(batch["label"], 5) * 0.9 + 0.1 / 5
    module.train()
    graph, weights, others = nnx.split(module, nnx.Param, ...)

    def loss_of(weights):
        model = nnx.merge(graph, weights, others, copy=True)
        loss = optax.softmax_cross_entropy(model(images), targets).mean()
        return loss, nnx.state(model)

    compute = quick_jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, updated), gradients = compute(weights)
    nnx.update(module, updated)
    norm = quick_jit(optax.tree.norm)(gradients)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    # The statistics that the module updated in place, and the average: 0.9 old + 0.1 new.
    _, moved = arrays_of(module)
    for name, array in moved.items():
        np.testing.assert_allclose(new.statistics[name], array, rtol=1e-4, atol=1e-6)
    for name, old in {**params, **statistics}.items():
        latest = np.asarray({**new.params, **new.statistics}[name])
        expected = 0.9 * np.asarray(old) + 0.1 * latest
        np.testing.assert_allclose(new.ema[name], expected, rtol=1e-5, atol=1e-6)


def _options() -> dict:
    return dict(
        dim=8,
        in_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 4),
        resolution=64,
        window_size=(2, 2, 2, 2),
        num_classes=5,
    )
