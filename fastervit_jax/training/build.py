"""From a config to the parts of a run that no task has of its own."""

import dataclasses
from typing import Any

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.compiler import compiler_options
from fastervit_jax.parallel.partition import gather_in_loops
from fastervit_jax.runs.config import batch_norm_group, model_config
from fastervit_jax.runs.state import TrainState, abstract_state, place_state
from fastervit_jax.training.finetuning import (
    check_frozen,
    is_frozen,
    learning_rate_multiplier,
)
from fastervit_jax.training.optimizers import by_path, make_optimizer
from fastervit_jax.training.schedules import warmup_cosine_schedule
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from fastervit_jax.training.task import Task


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes, on shapes: nothing of it is compiled yet.

    Attributes:
        model: the network as a function of its arrays.
        optimizer: the optimizer.
        schedule: number of updates done → learning rate of the next one.
        state: shapes, types and places of the train state.
    """

    model: PureModel
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state: TrainState


def program(
    task: Task, config: ml_collections.ConfigDict, mesh: Mesh, *, epoch_steps: int
) -> Program:
    """The network, optimizer and state of a run on a mesh.

    Raises:
        ValueError: `config.finetune.frozen` names no module.
    """
    network = skeleton(task, config, mesh)
    schedule = learning_rate(config, epoch_steps)
    tx = optimizer(config, schedule)
    state = abstract_state(network, tx, mesh)
    return Program(PureModel(network, frozen=config.finetune.frozen), tx, schedule, state)


def train_step(
    task: Task,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    program: Program,
    *,
    epoch_steps: int,
    mixing_group: int,
):
    """The step of a run, jitted: (state, batch) → (state, metrics)."""
    settings = StepSettings(
        seed=config.seed,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
        objective=task.objective(config, epoch_steps=epoch_steps, mixing_group=mixing_group),
    )
    step = make_train_step(program.model, program.optimizer, settings, mesh)
    options = compiler_options(mesh)
    if options and jax.process_index() == 0:
        print(f"Compiler options (change them by XLA_FLAGS): {options}", flush=True)
    return compile_train_step(step, program.state, mesh, options)


def initial_state(
    task: Task, config: ml_collections.ConfigDict, mesh: Mesh, program: Program
) -> TrainState:
    """The state before the first step.

    Every host makes the same network on its CPU. New weights are not compiled as a whole: hundreds
    of random draws make a program that takes longer to compile than to run.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        network = task.initial_network(config)
    return place_state(network, program.optimizer, mesh)


def skeleton(task: Task, config: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    """A task's network, set up for training on a mesh, with shapes in place of weights.

    Raises:
        ValueError: `config.finetune.frozen` names no module.
    """
    model = task.network(config)
    model.set_attributes(group_size=batch_norm_group(config))
    for stage in config.remat:
        model.stages[stage - 1].set_attributes(remat=True)
    if config.scan_blocks:
        model.set_attributes(scan=True)
        gather_in_loops(model, mesh)
    check_frozen(list(arrays_of(model)[0]), config.finetune.frozen)
    return model


def learning_rate(config: ml_collections.ConfigDict, epoch_steps: int) -> optax.Schedule:
    """The rate of the next update, from the number of updates done."""
    return warmup_cosine_schedule(
        peak=config.optimizer.learning_rate,
        warmup_steps=round(config.optimizer.warmup_epochs * epoch_steps),
        total_steps=config.epochs * epoch_steps,
        warmup_start=config.optimizer.warmup_start,
        minimum=config.optimizer.minimum,
    )


def optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of a run."""
    finetune = config.finetune
    network = model_config(config)
    layer_scales = frozen = None
    if finetune.layer_decay < 1:
        layer_scales = by_path(
            lambda name: learning_rate_multiplier(name, network, finetune.layer_decay)
        )
    if finetune.frozen:
        frozen = by_path(lambda name: is_frozen(name, finetune.frozen))
    return make_optimizer(
        config.optimizer.name,
        learning_rate=schedule,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm or None,
        layer_scales=layer_scales,
        frozen=frozen,
    )
