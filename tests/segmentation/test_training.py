"""The step of a segmenter: ignored pixels, padding, and one result on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.data.preprocessing import normalize, normalize_padded
from fastervit_jax.data.sources.masks import IGNORE
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.config import mixing_group
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.segmentation.losses import segmentation_cross_entropy
from fastervit_jax.training import build
from fastervit_jax.training.tasks import task_of
from tests.quick_compilation import quickest_compilation
from tests.segmentation.test_run import CHANGES


def test_padding_is_zero_after_normalization():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (2, 4, 5, 3), np.uint8))
    values = normalize_padded(images, jnp.asarray([[4, 3], [2, 5]]), jnp.float32)
    expected = np.array(normalize(images))
    expected[0, :, 3:] = 0
    expected[1, 2:] = 0
    np.testing.assert_array_equal(values, expected)


def test_ignored_pixels_add_nothing():
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 3)), jnp.float32)
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :2] = IGNORE
    loss = segmentation_cross_entropy(scores, jnp.asarray(labels))
    by_hand = jax.nn.logsumexp(scores, -1) - scores[..., 0]
    assert float(loss) == pytest.approx(float(by_hand[0, 2:].sum() / 16), rel=1e-6)
    value, gradient = jax.value_and_grad(segmentation_cross_entropy)(
        scores, jnp.full((1, 4, 4), IGNORE, jnp.uint8)
    )
    assert float(value) == 0
    assert not np.asarray(gradient).any()


@functools.cache
def _compiled(devices: int, fsdp: int):
    """The mesh, a state, its shapes and places, and the step."""
    config = load_recipe("segment_digits")
    config.update_from_flattened_dict({**CHANGES, "model.dtype": "float32"})
    task = task_of(config)
    mesh = make_mesh(data=devices // fsdp, fsdp=fsdp, devices=jax.devices()[:devices])
    program = build.program(task, config, mesh, epoch_steps=10)
    state = build.initial_state(task, config, mesh, program)
    state = dataclasses.replace(state, step=state.step + 5)
    program_step = build.make_train_step(
        program.model,
        program.optimizer,
        build.StepSettings(
            seed=0,
            ema_decay=0.9,
            objective=task.objective(config, epoch_steps=10, mixing_group=mixing_group(config, 1)),
        ),
        mesh,
    )
    step = build.compile_train_step(program_step, program.state, mesh, quickest_compilation())
    return mesh, jax.device_get(state), program.state, step


def _step_on(devices: int, fsdp: int, *, ignore_all: bool = False):
    """State and metrics after one step on a mesh."""
    mesh, state, shapes, step = _compiled(devices, fsdp)
    state = jax.tree.map(lambda array, shape: jax.device_put(array, shape.sharding), state, shapes)
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 11, (8, 32, 32)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.1] = IGNORE
    if ignore_all:
        mask[:] = IGNORE
    batch = {
        "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "mask": mask,
        "size": np.tile(np.asarray([32, 30], np.int32), (8, 1)),
    }
    state, metrics = step(state, place_batch(batch, mesh))
    return jax.device_get(state), {name: float(value) for name, value in metrics.items()}


@pytest.mark.slow
def test_a_batch_without_labels_has_the_loss_0_and_says_so():
    state, metrics = _step_on(1, 1, ignore_all=True)
    assert metrics["loss"] == 0 and metrics["labeled"] == 0 and metrics["skipped"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_one_result_on_one_device_and_on_eight():
    """Batch norm is over the whole batch, whatever the mesh. Float32."""
    one, metrics = _step_on(1, 1)
    eight, other = _step_on(8, 2)
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name, array in one.statistics.items():
        np.testing.assert_allclose(eight.statistics[name], array, rtol=1e-4, atol=1e-5)
