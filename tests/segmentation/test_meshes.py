"""Steps on every mesh give one result in float64; hosts share an evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import BatchNorm
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.config import model_config
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.segmentation.upernet import UperNet
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.segmentation import SegmentationObjective
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.detection.test_meshes import largest_difference
from tests.parallel.hosts import evaluate, start
from tests.quick_compilation import QUICK_COMPILATION
from tests.segmentation.test_run import CHANGES
from tests.small.run import as_flags

STEPS = 3
MESHES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)]


def run(mesh=(1, 1, 1)):
    """Losses and the state after some steps of 8 images."""
    config = load_recipe("segment_digits")
    config.update_from_flattened_dict(CHANGES)
    with jax.enable_x64(True):
        model = UperNet(model_config(config), dtype=jnp.float64, rngs=nnx.Rngs(0))
        state = nnx.state(model, (nnx.Param, nnx.BatchStat))
        nnx.update(model, jax.tree.map(lambda array: array.astype(jnp.float64), state))
        model.set_attributes(BatchNorm, group_size=8)
        mesh = make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)])
        settings = StepSettings(
            seed=3, objective=SegmentationObjective(0.4, jnp.float64), ema_decay=0.9
        )
        optimizer = make_optimizer("sgd", learning_rate=0.01, weight_decay=0.01)
        shapes = abstract_state(model, optimizer, mesh)
        step = make_train_step(PureModel(model), optimizer, settings, mesh)
        step = compile_train_step(step, shapes, mesh, QUICK_COMPILATION)
        state = place_state(model, optimizer, mesh)
        rng = np.random.default_rng(0)
        losses = []
        for _ in range(STEPS):
            batch = {
                "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
                "mask": rng.integers(0, 11, (8, 32, 32)).astype(np.uint8),
                "size": rng.integers(20, 33, (8, 2), np.int32),
            }
            state, metrics = step(state, place_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
        assert len(set(losses)) == STEPS and np.isfinite(losses).all()
        return losses, jax.tree.map(np.asarray, state)


@pytest.mark.slow
def test_same_on_every_mesh():
    """In float64, so that nothing but a real difference shows; `-s` shows the table."""
    one = run()
    for mesh in MESHES:
        difference = largest_difference(run(mesh), one)
        print(f"mesh {mesh}: {difference:.1e}")
        assert difference < 1e-9


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_as_one(tmp_path):
    """Each host evaluates its images; the confusion matrices are summed."""
    numbers = {}
    for hosts in (1, 2):
        workdir = tmp_path / f"hosts{hosts}"
        changes = {**CHANGES, "data.data_dir": str(tmp_path / "data"), "epochs": 1}
        changes |= {"total_steps": 2, "evaluation.every_steps": 2, "optimizer.warmup_steps": 1}
        command = ["--config=configs/segment_digits.py", f"--workdir={workdir}", *as_flags(changes)]
        for code, _, errors in start(hosts, command, devices=2 // hosts):
            assert code == 0, errors
        flags = [f"--weights={workdir}", f"--data_dir={tmp_path / 'data'}", "--batch_size=8"]
        numbers[hosts] = evaluate(hosts, flags)
    assert numbers[1]["images"] == 150
    assert numbers[2] == {
        key: pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
        for key, value in numbers[1].items()
    }
