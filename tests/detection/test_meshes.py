"""Training of a detector on meshes of devices that are forced on this CPU."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment

from fastervit_jax.detection.dino import DINO
from fastervit_jax.detection.matching import match_outputs, matching_costs
from fastervit_jax.models.layers import BatchNorm
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import batch_sharding, make_mesh, place_batch
from fastervit_jax.runs.config import model_config
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.training.detection import Detection
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.quick_compilation import QUICK_COMPILATION, quickest_compilation
from tests.small.detection_run import FLAGS

MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
STEPS = 3


def test_matching_stays_on_each_device():
    """The optimal pairs (scipy), without a word between devices."""
    mesh = make_mesh(2, 2, 2)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 8, 12, 5)).astype(np.float32)
    boxes = rng.uniform(0.1, 0.5, (3, 8, 12, 4)).astype(np.float32)
    labels = rng.integers(0, 5, (8, 4)).astype(np.int32)
    targets = rng.uniform(0.1, 0.5, (8, 4, 4)).astype(np.float32)
    counts = np.asarray([4, 0, 1, 2, 3, 4, 1, 4], np.int32)
    of_outputs = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))
    places = (of_outputs, of_outputs, *[batch_sharding(mesh)] * 3)
    run = jax.jit(lambda *arguments: match_outputs(*arguments, mesh), in_shardings=places)
    lowered = run.lower(logits, boxes, labels, targets, counts)
    program = lowered.compile(quickest_compilation())
    assert not re.findall("all-gather|all-reduce|collective|all-to-all", program.as_text())
    arguments = jax.device_put((logits, boxes, labels, targets, counts), places)
    found = np.asarray(program(*arguments))
    costs = np.asarray(jax.vmap(matching_costs, (0, 0, None, None))(logits, boxes, labels, targets))
    for output in range(3):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(costs[output, image, :, :count])
            ours = found[output, image, :count]
            assert dict(zip(target, query, strict=True)) == dict(enumerate(ours))


def run(mesh=(1, 1, 1), *, accumulate=1, remat=False):
    """Losses of some steps, and the state after them."""
    config = load_recipe("detect_digits")
    config.update_from_flattened_dict(FLAGS)
    config.model.decoder_layers = 2
    config.accumulate = accumulate
    config.batch_size = 16
    with jax.enable_x64(True):
        model = DINO(model_config(config), dtype=jnp.float64, rngs=nnx.Rngs(0))
        state = nnx.state(model, (nnx.Param, nnx.BatchStat))
        nnx.update(model, jax.tree.map(lambda array: array.astype(jnp.float64), state))
        model.set_attributes(BatchNorm, group_size=2)
        model.encoder.remat = model.decoder.remat = remat
        mesh = make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
        objective = Detection().objective(config, epoch_steps=5, mixing_group=2)
        settings = StepSettings(
            seed=3,
            objective=dataclasses.replace(objective, per_gpu=2, dtype=jnp.float64),
            ema_decay=0.9,
            accumulate=accumulate,
        )
        optimizer = make_optimizer("sgd", learning_rate=0.01, weight_decay=0.01, clip_norm=0.1)
        shapes = abstract_state(model, optimizer, mesh)
        step = compile_train_step(
            make_train_step(PureModel(model), optimizer, settings, mesh), shapes, mesh
        )
        state = place_state(model, optimizer, mesh)
        rng = np.random.default_rng(0)
        losses, compiled = [], None
        for _ in range(STEPS):
            batch = {
                "image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8),
                "size": rng.integers(40, 65, (16, 2), np.int32),
                "labels": rng.integers(0, 2, (16, 4), np.int32),
                "boxes": rng.uniform(0.2, 0.4, (16, 4, 4)),
                "count": rng.integers(0, 5, 16, np.int32),
            }
            batch = place_batch(batch, mesh)
            compiled = compiled or step.lower(state, batch).compile(QUICK_COMPILATION)
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"]))
        assert len(set(losses)) == STEPS and np.isfinite(losses).all()
        return losses, jax.tree.map(np.asarray, state)


def largest_difference(first, second) -> float:
    """Of losses, parameters, statistics and averages, relative to 1 or the value."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_same_on_every_mesh(accumulate):
    """In float64, so that nothing but a real difference shows; `-s` shows the table."""
    one = run(accumulate=accumulate)
    for mesh in MESHES:
        remat = mesh == (2, 4, 1)
        difference = largest_difference(run(mesh, accumulate=accumulate, remat=remat), one)
        print(f"mesh {mesh}, {accumulate=}, {remat=}: {difference:.1e}")
        assert difference < 1e-9
