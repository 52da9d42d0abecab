"""One result on every mesh, with and without accumulation, rematerialisation, blocks in loops.

In float64, so that nothing but a real difference shows: five steps agree to 1e-9, on devices forced
on this CPU. (In float32 sums in another order differ: there the losses agree, test_step.py.)
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.models import FasterViT, variant_config
from fastervit_jax.models.layouts import traced_for
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.parallel.partition import gather_in_loops
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.training.classification import ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.quick_compilation import QUICK_COMPILATION

STEPS = 5
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]
ALL_STAGES = (1, 2, 3, 4)


def _model(depths, *, group_size: int, drop_path: float) -> FasterViT:
    network = variant_config(
        "faster_vit_3_224",
        dim=8,
        in_dim=8,
        depths=depths,
        num_heads=(1, 2, 4, 4),
        resolution=64,
        window_size=(2, 2, 2, 2),
        num_classes=5,
        drop_path_rate=drop_path,
        layer_scale=0.1,
    )
    model = FasterViT(network, dtype=jnp.float64, rngs=nnx.Rngs(0))
    model.set_attributes(group_size=group_size)
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, jax.tree.map(lambda array: array.astype(jnp.float64), state))
    return model


def run(
    mesh=(1, 1, 1),
    *,
    accumulate=1,
    remat=(),
    scan=False,
    depths=(1, 1, 1, 1),
    group_size=4,
    drop_path=0.1,
    platform="cpu",
    steps=STEPS,
):
    """Losses of some steps, the state after them, and the compiled step.

    `platform` is what the network is laid out for; it runs on CPU devices in any case.
    """
    with jax.enable_x64(True):
        model = _model(depths, group_size=group_size, drop_path=drop_path)
        for stage in remat:
            model.stages[stage - 1].set_attributes(remat=True)
        mesh = make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
        if scan:
            model.set_attributes(scan=True)
            gather_in_loops(model, mesh)
        augmentation = AugmentationSettings(
            num_classes=5, group_size=2, erasing_probability=0.5, dtype=jnp.float64
        )
        settings = StepSettings(
            seed=3,
            objective=ClassificationObjective(augmentation, mesa_weight=0.1, mesa_start=1),
            ema_decay=0.9,
            accumulate=accumulate,
        )
        optimizer = make_optimizer("sgd", learning_rate=0.05, weight_decay=0.01, clip_norm=5.0)
        shapes = abstract_state(model, optimizer, mesh)
        step = compile_train_step(
            make_train_step(PureModel(model), optimizer, settings, mesh), shapes, mesh
        )
        state = place_state(model, optimizer, mesh)
        rng = np.random.default_rng(0)
        losses, compiled = [], None
        for _ in range(steps):
            batch = {
                "image": rng.integers(0, 256, (16, 64, 64, 3), np.uint8),
                "label": rng.integers(0, 5, 16, np.int32),
            }
            batch = place_batch(batch, mesh)
            if compiled is None:
                with traced_for(platform):
                    compiled = step.lower(state, batch).compile(QUICK_COMPILATION)
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"]))
        return losses, jax.tree.map(np.asarray, state), compiled


def largest_difference(first, second) -> float:
    """Of losses, parameters, statistics, moments and averages, relative to 1 or the value."""
    pairs = zip(jax.tree.leaves(first[:2]), jax.tree.leaves(second[:2]), strict=True)
    return max(float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in pairs)


def test_all_at_once_is_the_same_as_one_device():
    """Every axis, accumulation, rematerialisation and loops, against one device with accumulation.

    Laid out as on a TPU, against one as on a CPU. The block of stage 4 makes a loop of one;
    `test_loops_change_nothing` has longer ones.
    """
    one = run(accumulate=2)
    assert len(set(one[0])) == STEPS, "the losses stand still"
    split = run((2, 2, 2), accumulate=2, remat=ALL_STAGES, scan=True, platform="tpu")
    difference = largest_difference(split, one)
    print(f"2×2×2 with accumulation, rematerialisation and loops: {difference:.1e}")
    assert difference < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_same_on_every_mesh(accumulate):
    one = run(accumulate=accumulate)
    platforms = itertools.cycle(("tpu", "cuda", "cpu"))
    for mesh in [(1, 1, 1), *MESHES]:
        for remat in ((), (2, 3), ALL_STAGES):
            if mesh == (1, 1, 1) and not remat:
                continue
            platform = next(platforms)
            split = run(mesh, accumulate=accumulate, remat=remat, platform=platform)
            difference = largest_difference(split, one)
            print(f"mesh {mesh}, {platform=}, {accumulate=}, {remat=}: {difference:.1e}")
            assert difference < 1e-9


@pytest.mark.slow
def test_loops_change_nothing():
    """Loops of two and three blocks, one stage with a propagating block behind its loop."""
    depths = (1, 1, 3, 3)
    one = run(depths=depths)
    for mesh in [(1, 1, 1), *MESHES]:
        for remat in ((), (3, 4)):
            looped = run(mesh, remat=remat, scan=True, depths=depths)
            difference = largest_difference(looped, one)
            print(f"mesh {mesh}, remat {remat}, in loops: {difference:.1e}")
            assert difference < 1e-9


@pytest.mark.slow
def test_accumulation_changes_nothing_but_the_groups():
    """Where batch norm has groups of one and nothing is drawn by position, it is the same."""
    whole = run(group_size=1, drop_path=0.0)
    parts = run(group_size=1, drop_path=0.0, accumulate=4)
    assert largest_difference(parts, whole) < 1e-9
