"""From a config to the parts of a run: data, schedule, optimizer, settings of the step."""

import itertools

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.augmentation.rand_augment import RandAugment, parse_rand_augment
from fastervit_jax.data import (
    EvalTransform,
    Source,
    TrainLoader,
    check_same_classes,
    eval_batches,
    open_source,
    train_batches,
)
from fastervit_jax.models import FasterViT
from fastervit_jax.models.fastervit import abstract_model
from fastervit_jax.models.layers import lay_out
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.parallel.mesh import batch_shards
from fastervit_jax.parallel.partition import gather_in_loops
from fastervit_jax.runs.config import batch_norm_group, model_config
from fastervit_jax.training.finetuning import (
    check_frozen,
    is_frozen,
    learning_rate_multiplier,
)
from fastervit_jax.training.optimizers import by_path, make_optimizer
from fastervit_jax.training.schedules import warmup_cosine_schedule
from fastervit_jax.training.step import StepSettings


def open_data(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
    """Opens the training and the validation set.

    Raises:
        ValueError: a set cannot be read, the two have different classes, or the model has another
            number of them.
    """
    training = open_source(config.data.train, data_dir=config.data.data_dir)
    validation = open_source(config.data.validation, data_dir=config.data.data_dir)
    check_same_classes(training, validation)
    if training.num_classes != config.model.num_classes:
        raise ValueError(
            f"config.model.num_classes={config.model.num_classes}, but {config.data.train} has "
            f"{training.num_classes} classes: set the key to that."
        )
    return training, validation


def train_transform(config: ml_collections.ConfigDict) -> TrainTransform:
    """What happens to a training image on the host.

    Raises:
        ValueError: `config.rand_augment` is no RandAugment string.
    """
    on_host = not config.distort_on_device
    try:
        _rand_augment(config)
        return TrainTransform(
            model_config(config).resolution,
            scale=config.crop.scale,
            ratio=config.crop.ratio,
            interpolation=config.crop.interpolation,
            flip=config.flip if on_host else 0.0,
            rand_augment=config.rand_augment if on_host else "",
        )
    except ValueError as error:
        raise ValueError(f"config.rand_augment={config.rand_augment!r}: {error}") from None


def _rand_augment(config: ml_collections.ConfigDict) -> RandAugment | None:
    return parse_rand_augment(config.rand_augment) if config.rand_augment else None


def skeleton(config: ml_collections.ConfigDict, mesh: Mesh) -> FasterViT:
    """The network of a run, set up for training on a mesh, with shapes in place of weights.

    Raises:
        ValueError: `config.finetune.frozen` names no module.
    """
    model = abstract_model(model_config(config), dtype=jnp.dtype(config.model.dtype))
    model.set_attributes(group_size=batch_norm_group(config))
    platform = mesh.devices.flat[0].platform
    a_device = config.batch_size // (config.accumulate * batch_shards(mesh))
    lay_out(model, platform)
    model.set_attributes(pairs=platform == "tpu" and a_device % 2 == 0)
    for stage in config.remat:
        model.stages[stage - 1].set_attributes(remat=True)
    if config.scan_blocks:
        model.set_attributes(scan=True)
        gather_in_loops(model, mesh)
    check_frozen(list(arrays_of(model)[0]), config.finetune.frozen)
    return model


def train_loader(
    config: ml_collections.ConfigDict, source: Source, start_step: int, num_steps: int
) -> TrainLoader:
    """This host's training batches from a step on."""
    return train_batches(
        source,
        train_transform(config),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        num_steps=num_steps,
        num_workers=config.data.num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def validation_batches(config: ml_collections.ConfigDict, source: Source):
    """This host's evaluation batches."""
    transform = EvalTransform(
        model_config(config).resolution,
        config.evaluation.crop_fraction,
        config.evaluation.crop_mode,
    )
    return eval_batches(
        source,
        transform,
        batch_size=config.evaluation.batch_size,
        num_workers=config.data.num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


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


def mesa_start(config: ml_collections.ConfigDict) -> int:
    """The first epoch, counted from 0, with MESA: the first beyond its share of the epochs."""
    return next(e for e in itertools.count() if e / config.epochs > config.mesa.start)


def augmentation_settings(
    config: ml_collections.ConfigDict, *, mixing_group: int
) -> AugmentationSettings:
    """What happens to a batch on the device."""
    distorts = config.distort_on_device
    return AugmentationSettings(
        num_classes=config.model.num_classes,
        group_size=mixing_group,
        mixup_alpha=config.mixup_alpha,
        cutmix_alpha=config.cutmix_alpha,
        switch_probability=config.cutmix_probability,
        mixing_probability=config.mixing_probability,
        smoothing=config.label_smoothing,
        erasing_probability=config.erasing_probability,
        flip_probability=config.flip if distorts else 0.0,
        rand_augment=_rand_augment(config) if distorts else None,
        dtype=jnp.dtype(config.model.dtype),
    )


def step_settings(
    config: ml_collections.ConfigDict, *, epoch_steps: int, mixing_group: int
) -> StepSettings:
    """What a step does beside the model and the optimizer."""
    return StepSettings(
        seed=config.seed,
        ema_decay=config.ema_decay,
        mesa_weight=config.mesa.weight,
        mesa_start=mesa_start(config) * epoch_steps,
        accumulate=config.accumulate,
        augmentation=augmentation_settings(config, mixing_group=mixing_group),
    )
