"""From a config to the parts of a run that no task has of its own."""

import dataclasses
from typing import Any

import jax
import ml_collections
import optax
from jax.sharding import Mesh

from fastervit_jax.models.layers import BatchNorm
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
from fastervit_jax.training.optimizers import by_path, decay_mask, make_optimizer
from fastervit_jax.training.schedules import (
    warmup_cosine_schedule,
    warmup_poly_schedule,
    warmup_step_schedule,
)
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
    # Not those of group norms, whose groups are of channels.
    model.set_attributes(BatchNorm, group_size=batch_norm_group(config))
    for stage in config.remat:
        model.backbone.stages[stage - 1].set_attributes(remat=True)
    if config.remat_transformer:
        for module in (model.encoder, model.decoder):
            module.remat = True
    if config.scan_blocks:
        model.set_attributes(scan=True)
        gather_in_loops(model, mesh)
    check_frozen(list(arrays_of(model)[0]), config.finetune.frozen)
    return model


def learning_rate(config: ml_collections.ConfigDict, epoch_steps: int) -> optax.Schedule:
    """The rate of the next update, from the number of updates done: `config.optimizer.schedule`.

    Lengths are in steps where `config.total_steps` and `config.optimizer.warmup_steps` are set, and
    else in epochs.

    Raises:
        ValueError: the warm-up is longer than the run.
    """
    settings = config.optimizer
    warmup_steps = settings.warmup_steps or round(settings.warmup_epochs * epoch_steps)
    total_steps = config.total_steps or config.epochs * epoch_steps
    if warmup_steps > total_steps:
        key = "warmup_steps" if settings.warmup_steps else "warmup_epochs"
        raise ValueError(
            f"Invalid config.optimizer.{key}={settings[key]}: the warm-up has {warmup_steps} "
            f"steps, but the run has {total_steps}. Shorten the warm-up or train longer "
            "(config.epochs or config.total_steps)."
        )
    if settings.schedule == "poly":
        return warmup_poly_schedule(
            peak=settings.learning_rate,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            warmup_start=settings.warmup_start,
            minimum=settings.minimum,
        )
    if settings.schedule == "step":
        return warmup_step_schedule(
            peak=settings.learning_rate,
            warmup_steps=warmup_steps,
            drops=[round(epoch * epoch_steps) for epoch in settings.drop_epochs],
            total_steps=total_steps,
            warmup_start=settings.warmup_start,
        )
    return warmup_cosine_schedule(
        peak=settings.learning_rate,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        warmup_start=settings.warmup_start,
        minimum=settings.minimum,
    )


def optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optimizer of a run.

    Settings of single parameters go by name: weight decay (`optimizers.decay_mask`), factors on the
    learning rate (`finetuning.learning_rate_multiplier`), frozen modules (`finetuning.is_frozen`).
    """
    finetune = config.finetune
    network = model_config(config).backbone
    factor = config.optimizer.backbone_factor
    layer_scales = frozen = None
    if finetune.layer_decay < 1 or factor != 1:
        layer_scales = by_path(
            lambda name: learning_rate_multiplier(name, network, finetune.layer_decay, factor)
        )
    if finetune.frozen:
        frozen = by_path(lambda name: is_frozen(name, finetune.frozen))
    everywhere = by_path(lambda _: True)
    return make_optimizer(
        config.optimizer.name,
        learning_rate=schedule,
        weight_decay=config.optimizer.weight_decay,
        clip_norm=config.optimizer.clip_norm or None,
        layer_scales=layer_scales,
        frozen=frozen,
        decay_mask=everywhere if config.optimizer.decay_all else decay_mask,
    )
