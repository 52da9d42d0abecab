"""The first steps of a run of train.py in float64, which no recipe has: same flags, same parts.

Float32 runs whose sums are taken in another order drift apart within a few steps; these do not.
Writes losses and parameters after every step to WORKDIR/steps.npz.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import config_flags

from fastervit_jax.commands.flags import define_host_flags
from fastervit_jax.commands.flags import run as run_command
from fastervit_jax.data import steps_per_epoch
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import batch_shards, make_mesh, place_batch
from fastervit_jax.runs.config import batch_norm_group, mixing_group, model_config
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.training import build
from fastervit_jax.training.classification import Classification
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from tests.quick_compilation import QUICK_COMPILATION

STEPS = 8

_CONFIG = config_flags.DEFINE_config_file("config", None)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where steps.npz is written.")
_join_hosts = define_host_flags()


def _model(config) -> FasterViT:
    model = FasterViT(model_config(config), dtype=jnp.float64, rngs=nnx.Rngs(config.seed))
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, jax.tree.map(lambda array: array.astype(jnp.float64), state))
    model.set_attributes(group_size=batch_norm_group(config))
    return model


def main(_) -> None:
    config = _CONFIG.value
    jax.config.update("jax_enable_x64", True)
    _join_hosts()
    mesh = make_mesh(**config.mesh)
    task = Classification()
    training = task.open_data(config).training
    epoch_steps = steps_per_epoch(len(training), config.batch_size)
    optimizer = build.optimizer(config, build.learning_rate(config, epoch_steps))
    objective = task.objective(
        config, epoch_steps=epoch_steps, mixing_group=mixing_group(config, batch_shards(mesh))
    )
    augmentation = dataclasses.replace(objective.augmentation, dtype=jnp.float64)
    settings = StepSettings(
        seed=config.seed,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
        objective=dataclasses.replace(objective, augmentation=augmentation),
    )
    model = _model(config)
    shapes = abstract_state(model, optimizer, mesh)
    step = compile_train_step(
        make_train_step(PureModel(model), optimizer, settings, mesh), shapes, mesh
    )
    state = place_state(model, optimizer, mesh)
    found, compiled = {}, None
    with task.train_loader(config, training, 0, STEPS) as loader:
        for number, batch in zip(itertools.count(1), loader, strict=False):
            placed = place_batch(batch, mesh)
            compiled = compiled or step.lower(state, placed).compile(QUICK_COMPILATION)
            state, metrics = compiled(state, placed)
            found[f"{number}/loss"] = np.asarray(metrics["loss"])
            params = multihost_utils.process_allgather(state.params, tiled=True)
            found |= {f"{number}/{name}": np.asarray(array) for name, array in params.items()}
    if jax.process_index() == 0:
        np.savez(_WORKDIR.value, **found)


if __name__ == "__main__":
    run_command(main)
