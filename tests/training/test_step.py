"""The step: a pure function, the same on any mesh, and what it does to the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fastervit_jax.models import FasterViT, variant_config
from fastervit_jax.models.functional import PureModel, arrays_of
from fastervit_jax.training.device_augmentation import AugmentationSettings
from fastervit_jax.training.mesh import make_mesh, place_batch
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.state import abstract_state, new_state, place_state
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.quick_compilation import QUICK_COMPILATION, quick_jit

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
    average_decay=0.9,
    augmentation=AugmentationSettings(num_classes=5, group_size=2, erasing_probability=0.5),
)
MODEL = FasterViT(NETWORK, rngs=nnx.Rngs(0))
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


def _run(steps: int, *, devices: int, **mesh_sizes):
    mesh = make_mesh(**mesh_sizes, devices=jax.devices()[:devices])
    step_function = make_train_step(PureModel(MODEL), OPTIMIZER, SETTINGS, mesh)
    step = compile_train_step(step_function, abstract_state(MODEL, OPTIMIZER, mesh), mesh)
    state = place_state(MODEL, OPTIMIZER, mesh)
    losses, compiled = [], None
    for batch in _batches(steps):
        old, batch = state, place_batch(batch, mesh)
        compiled = compiled or step.lower(state, batch).compile(QUICK_COMPILATION)
        state, metrics = compiled(state, batch)
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
    start = new_state(*arrays_of(MODEL), OPTIMIZER)
    assert int(state.step) == 3
    # The average moves by a tenth of that, which may be lost in rounding.
    for part in ("params", "statistics"):
        new, first = getattr(state, part), getattr(start, part)
        # Batch norm takes away what a bias before it adds: such a bias has no gradient.
        free = [name for name in new if not name.endswith(("conv1.bias", "conv2.bias"))]
        still = [name for name in free if np.array_equal(new[name], first[name])]
        assert not still, (part, still)


@pytest.fixture(scope="module")
def split():
    return _run(3, devices=8, data=2, fsdp=4)


def test_same_on_a_mesh(single, split):
    _assert_same_run(single, split)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(data=8), dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)])
def test_same_on_other_meshes(single, sizes):
    _assert_same_run(single, _run(3, devices=8, **{"data": 1, **sizes}))


def _assert_same_run(run, other):
    np.testing.assert_allclose(other[0], run[0], rtol=1e-5)
    for name, array in run[1].average.items():
        np.testing.assert_allclose(
            other[1].average[name], array, rtol=2e-3, atol=2e-4, err_msg=name
        )


def test_state_is_split_on_the_mesh(split):
    _, state, _ = split
    held = total = 0
    for array in jax.tree.leaves((state.params, state.optimizer, state.average)):
        total += array.size
        held += array.addressable_shards[0].data.size
    assert held / total == pytest.approx(1 / 4, rel=0.05)


def test_step_against_its_definition():
    """One step without drop path and augmentation, written out with plain optax."""
    network = variant_config("faster_vit_0_224", **{**_options(), "drop_path_rate": 0.0})
    settings = StepSettings(
        seed=0,
        average_decay=0.9,
        augmentation=AugmentationSettings(
            num_classes=5,
            group_size=16,
            mixing_probability=0.0,
            smoothing=0.1,
            erasing_probability=0.0,
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
    norm = optax.tree.norm(gradients)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    # The statistics that the module updated in place, and the average: 0.9 old + 0.1 new.
    _, moved = arrays_of(module)
    for name, array in moved.items():
        np.testing.assert_allclose(new.statistics[name], array, rtol=1e-4, atol=1e-6)
    for name, old in {**params, **statistics}.items():
        latest = {**new.params, **new.statistics}[name]
        np.testing.assert_allclose(
            new.average[name], 0.9 * old + 0.1 * latest, rtol=1e-5, atol=1e-6
        )


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
