"""Image classification as a task of the trainer."""

import contextlib
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.augmentation.device import AugmentationSettings, augment
from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.augmentation.rand_augment import RandAugment, parse_rand_augment
from fastervit_jax.data import (
    Decoding,
    EvalTransform,
    Source,
    TrainLoader,
    check_same_classes,
    eval_batches,
    open_source,
    train_batches,
)
from fastervit_jax.data.sources import describe_classes
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.evaluation.pictures import draw_predictions
from fastervit_jax.models import FasterViT, abstract_model
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.parallel.mesh import batch_shards
from fastervit_jax.runs.config import model_config
from fastervit_jax.runs.config_checks import check_config
from fastervit_jax.runs.state import TrainState, ema_model
from fastervit_jax.training.finetuning import load_initial_model
from fastervit_jax.training.losses import mesa_divergence, soft_target_cross_entropy
from fastervit_jax.training.task import Batch, Data, Evaluator, Metrics, Network, Panel

MESA_FACTOR = 50
"""The constant that the official script multiplies the MESA weight by."""


@dataclasses.dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy against soft labels, and MESA (see `training.losses`).

    Attributes:
        augmentation: what happens to images and labels on the device.
        mesa_weight: weight of the divergence from the answers of the EMA; 0 leaves it out.
        mesa_start: number of updates before the first one with MESA.
    """

    augmentation: AugmentationSettings
    mesa_weight: float = 0.0
    mesa_start: int = 0

    def prepare(self, key: jax.Array, batch: Batch, mesh: Mesh) -> Batch:
        """`image`, uint8 [N, H, W, 3], and `label`, int32 [N] → images and soft targets."""
        # A mixing group that a device holds in part can only be mixed across devices.
        held = self.augmentation.group_size * batch_shards(mesh)
        whole_groups = len(batch["image"]) % held == 0
        images, targets = augment(
            key,
            batch["image"],
            batch["label"],
            self.augmentation,
            mesh=mesh if whole_groups else None,
        )
        return {"image": images, "target": targets}

    def loss(
        self, network: Network, params: Arrays, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
        """The loss; its metric `mesa` is the divergence, where MESA is on."""
        images = batch["image"]
        logits, statistics = network.train(params, state.statistics, images, key)
        loss = soft_target_cross_entropy(logits, batch["target"])
        if not self.mesa_weight:
            return loss, ({}, statistics)

        def divergence(_):
            teacher = network.infer(*ema_model(state), images)
            return mesa_divergence(logits, teacher)

        started = state.step >= self.mesa_start
        mesa = jax.lax.cond(started, divergence, lambda _: jnp.zeros_like(loss), None)
        return loss + self.mesa_weight * MESA_FACTOR * mesa, ({"mesa": mesa}, statistics)


class Classification:
    """Image classification on folders and TFDS sets (implements `training.task.Task`)."""

    panels = (
        Panel("loss", {"loss": "training", "validation_loss": "validation"}),
        Panel("top-1", {"validation_top1": "validation"}),
        Panel("learning rate", {"learning_rate": "learning rate"}),
        Panel("gradient norm", {"gradient_norm": "before clipping"}),
    )
    headline = "top1"

    def check(
        self, config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int, tensor: int
    ) -> None:
        """Raises ValueError for a config that no run can have."""
        check_config(config, batch_shards=batch_shards, hosts=hosts, tensor=tensor)
        train_transform(config)

    def open_data(self, config: ml_collections.ConfigDict) -> Data:
        """Opens the training and the validation set.

        Raises:
            ValueError: a set cannot be read, the two have different classes, or the model has
                another number of them.
        """
        training = open_source(config.data.train, data_dir=config.data.data_dir)
        validation = open_source(config.data.validation, data_dir=config.data.data_dir)
        check_same_classes(training, validation)
        if training.num_classes != config.model.num_classes:
            raise ValueError(
                f"config.model.num_classes={config.model.num_classes}, but {config.data.train} has "
                f"{training.num_classes} classes: set the key to that."
            )
        if jax.process_index() == 0:
            print(f"{config.data.train}: {describe_classes(training.class_names)}", flush=True)
        return Data(training, validation)

    def network(self, config: ml_collections.ConfigDict) -> FasterViT:
        """The network, with shapes in place of weights."""
        return abstract_model(model_config(config), dtype=jnp.dtype(config.model.dtype))

    def initial_network(self, config: ml_collections.ConfigDict) -> FasterViT:
        """The network with new weights, or with `config.finetune.weights`."""
        dtype = jnp.dtype(config.model.dtype)
        if config.finetune.weights:
            return load_initial_model(config, dtype)
        return FasterViT(model_config(config), dtype=dtype, rngs=nnx.Rngs(config.seed))

    def train_loader(
        self, config: ml_collections.ConfigDict, source: Source, start_step: int, num_steps: int
    ) -> TrainLoader:
        """This host's batches of steps start_step … num_steps − 1."""
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
            max_damaged_share=config.data.max_damaged_share,
        )

    def batch_shapes(self, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a global batch from the loader."""
        height, width = model_config(config).resolution
        return {
            "image": jax.ShapeDtypeStruct((config.batch_size, height, width, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
        }

    def objective(
        self, config: ml_collections.ConfigDict, *, epoch_steps: int, mixing_group: int
    ) -> ClassificationObjective:
        """What a step minimizes."""
        return ClassificationObjective(
            augmentation=augmentation_settings(config, mixing_group=mixing_group),
            mesa_weight=config.mesa.weight,
            mesa_start=mesa_start(config) * epoch_steps,
        )

    def evaluator(
        self, config: ml_collections.ConfigDict, source: Source, model: PureModel, mesh: Mesh
    ) -> Evaluator:
        """Compiles what evaluates arrays on a data set."""
        eval_step = make_eval_step(model, mesh, dtype=jnp.dtype(config.model.dtype))

        def run(params: Arrays, statistics: Arrays, images_done) -> Evaluation:
            with contextlib.closing(_validation_batches(config, source)) as batches:
                return evaluate(
                    eval_step, params, statistics, batches, mesh, images_done=images_done
                )

        return run

    def draw(self, source: Source, evaluation: Evaluation, path: epath.PathLike) -> None:
        """Draws images with their predicted classes, mistakes first."""
        draw_predictions(source, evaluation.predictions, path)


def train_transform(config: ml_collections.ConfigDict) -> TrainTransform:
    """What happens to a training image on the host.

    Raises:
        ValueError: `config.rand_augment` is not a RandAugment string.
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
            decoding=decoding(config),
        )
    except ValueError as error:
        raise ValueError(f"config.rand_augment={config.rand_augment!r}: {error}") from None


def decoding(config: ml_collections.ConfigDict) -> Decoding:
    """What becomes of transparency and of the EXIF orientation of a run's images."""
    return Decoding(config.data.transparency, config.data.exif)


def _rand_augment(config: ml_collections.ConfigDict) -> RandAugment | None:
    return parse_rand_augment(config.rand_augment) if config.rand_augment else None


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


def mesa_start(config: ml_collections.ConfigDict) -> int:
    """The first epoch, counted from 0, with MESA: the first beyond its share of the epochs."""
    return next(e for e in itertools.count() if e / config.epochs > config.mesa.start)


def _validation_batches(config: ml_collections.ConfigDict, source: Source):
    """This host's evaluation batches."""
    transform = EvalTransform(
        model_config(config).resolution,
        config.evaluation.crop_fraction,
        config.evaluation.crop_mode,
        decoding(config),
    )
    return eval_batches(
        source,
        transform,
        batch_size=config.evaluation.batch_size,
        num_workers=config.data.num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
