"""Semantic segmentation as a task of the trainer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.augmentation.segmentation import MaskTransform
from fastervit_jax.data import Decoding, TrainLoader, check_same_classes, example_batches
from fastervit_jax.data.preprocessing import normalize_padded
from fastervit_jax.data.sources import describe_classes
from fastervit_jax.data.sources.masks import IGNORE, MaskedExample, MaskedSource, open_masks
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.runs.config import batch_norm_group, model_config
from fastervit_jax.runs.config_checks import check_config
from fastervit_jax.runs.state import TrainState
from fastervit_jax.segmentation.evaluation import SegmentationEvaluation, evaluate, local_scores
from fastervit_jax.segmentation.inference import InferenceSettings
from fastervit_jax.segmentation.losses import segmentation_cross_entropy
from fastervit_jax.segmentation.metrics import NUMBERS
from fastervit_jax.segmentation.pictures import draw_class_maps
from fastervit_jax.segmentation.upernet import UPERNET, UperNet
from fastervit_jax.training.finetuning import load_backbone, load_initial_model
from fastervit_jax.training.task import Batch, Data, Evaluator, Metrics, Network, Panel


@dataclasses.dataclass(frozen=True)
class SegmentationObjective:
    """Cross-entropy of the decoder, plus that of the auxiliary head.

    Attributes:
        auxiliary_weight: weight of the auxiliary head's loss.
        dtype: type of the images.
    """

    auxiliary_weight: float
    dtype: Any

    def prepare(self, key: jax.Array, batch: Batch, mesh: Mesh) -> Batch:
        """`image`, uint8 [N, H, W, 3], `size`, int32 [N, 2], `mask`, uint8 [N, H, W]."""
        del key, mesh
        images = normalize_padded(batch["image"], batch["size"], self.dtype)
        return {"image": images, "mask": batch["mask"]}

    def loss(
        self, network: Network, params: Arrays, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
        """The loss; its metrics are those of both heads, and the share of labeled pixels.

        A batch without any labeled pixel has the loss 0, and `labeled` says so.
        """
        outputs, statistics = network.train(params, state.statistics, batch["image"], key)
        decoder = segmentation_cross_entropy(outputs.decoder, batch["mask"])
        metrics = {"decoder": decoder, "labeled": jnp.mean(batch["mask"] != IGNORE)}
        loss = decoder
        if outputs.auxiliary is not None:
            auxiliary = segmentation_cross_entropy(outputs.auxiliary, batch["mask"])
            metrics["auxiliary"] = auxiliary
            loss = loss + self.auxiliary_weight * auxiliary
        return loss, (metrics, statistics)


@dataclasses.dataclass(frozen=True)
class _MaskedImage:
    """A masked example as arrays of a training batch."""

    source: MaskedSource
    transform: MaskTransform
    decoding: Decoding

    def __call__(self, example: MaskedExample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, mask = self.source.read(example, self.decoding)
        pixels, classes, size = self.transform(image, mask, rng)
        return {"image": pixels, "mask": classes, "size": np.asarray(size, np.int32)}


class Segmentation:
    """Semantic segmentation of images with masks (implements `training.task.Task`)."""

    panels = (
        Panel("loss", {"loss": "all", "decoder": "decoder", "auxiliary": "auxiliary head"}),
        Panel("mIoU", {"validation_mIoU": "mIoU"}),
        Panel("pixel accuracy", {"validation_pixel_accuracy": "pixel accuracy"}),
        Panel("learning rate", {"learning_rate": "learning rate"}),
    )
    headline = "mIoU"

    def check(
        self, config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int, tensor: int
    ) -> None:
        """Raises ValueError for a config that no run can have."""
        check_config(config, batch_shards=batch_shards, hosts=hosts, tensor=tensor, metrics=NUMBERS)
        if batch_norm_group(config) < 2:
            key = "group_size" if config.group_size < 2 else "batch_size"
            raise ValueError(
                f"Invalid config.{key}={config[key]}: expected at least 2 images that batch norm "
                f"normalizes together (with config.accumulate={config.accumulate}), because "
                "UperNet pools a map to one pixel."
            )
        inference_settings(config)

    def open_data(self, config: ml_collections.ConfigDict) -> Data:
        """Opens the training and the validation set.

        Raises:
            ValueError: a set cannot be read, the two have different classes, or the model has
                another number of them.
        """
        training: Any = open_masks(config.data.train, data_dir=config.data.data_dir)
        validation: Any = open_masks(config.data.validation, data_dir=config.data.data_dir)
        check_same_classes(training, validation)
        if training.num_classes != config.model.num_classes:
            raise ValueError(
                f"config.model.num_classes={config.model.num_classes}, but {config.data.train} has "
                f"{training.num_classes} classes: set the key to that."
            )
        if jax.process_index() == 0:
            print(
                f"{config.data.train}: {len(training)} images, "
                f"{describe_classes(training.class_names)}",
                flush=True,
            )
        return Data(training, validation)

    def network(self, config: ml_collections.ConfigDict) -> UperNet:
        """The network, with shapes in place of weights."""
        return UPERNET.abstract(model_config(config), dtype=jnp.dtype(config.model.dtype))

    def initial_network(self, config: ml_collections.ConfigDict) -> UperNet:
        """The network with new weights, `config.finetune.weights` or `config.finetune.backbone`."""
        dtype = jnp.dtype(config.model.dtype)
        if config.finetune.weights:
            return load_initial_model(config, dtype)
        model = UperNet(model_config(config), dtype=dtype, rngs=nnx.Rngs(config.seed))
        if config.finetune.backbone:
            load_backbone(model, config.finetune.backbone)
        return model

    def train_loader(
        self,
        config: ml_collections.ConfigDict,
        source: MaskedSource,
        start_step: int,
        num_steps: int,
    ) -> TrainLoader:
        """This host's batches of steps start_step … num_steps − 1."""
        return example_batches(
            source,
            _MaskedImage(source, mask_transform(config), decoding(config)),
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
        """Shapes and types of a global batch."""
        n, size = config.batch_size, model_config(config).resolution
        return {
            "image": jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8),
            "mask": jax.ShapeDtypeStruct((n, *size), jnp.uint8),
            "size": jax.ShapeDtypeStruct((n, 2), jnp.int32),
        }

    def objective(
        self, config: ml_collections.ConfigDict, *, epoch_steps: int, mixing_group: int
    ) -> SegmentationObjective:
        """What a step minimizes."""
        return SegmentationObjective(
            config.segmentation.auxiliary_weight, jnp.dtype(config.model.dtype)
        )

    def evaluator(
        self, config: ml_collections.ConfigDict, source: MaskedSource, model: PureModel, mesh: Mesh
    ) -> Evaluator:
        """Compiles what evaluates arrays on a data set."""
        prepare = local_scores(model, mesh, dtype=jnp.dtype(config.model.dtype))
        settings = inference_settings(config)

        def run(params: Arrays, statistics: Arrays, images_done) -> SegmentationEvaluation:
            return evaluate(
                prepare(params, statistics),
                source,
                settings,
                batch_size=config.evaluation.batch_size,
                decoding=decoding(config),
                images_done=images_done,
            )

        return run

    def draw(
        self, source: MaskedSource, evaluation: SegmentationEvaluation, path: epath.PathLike
    ) -> None:
        """Draws true and predicted classes over images."""
        draw_class_maps(source, evaluation.maps, path, decoding=evaluation.decoding)


def decoding(config: ml_collections.ConfigDict) -> Decoding:
    """How images are decoded."""
    return Decoding(config.data.transparency, config.data.exif)


def mask_transform(config: ml_collections.ConfigDict) -> MaskTransform:
    """How training images and their masks are distorted."""
    settings = config.segmentation
    return MaskTransform(
        crop=model_config(config).resolution,
        short_side=settings.short_side,
        long_side=settings.long_side,
        ratio=tuple(settings.ratio),
        max_class_share=settings.max_class_share,
        flip=config.flip,
        distort=settings.distort,
    )


def inference_settings(config: ml_collections.ConfigDict) -> InferenceSettings:
    """How class maps are made in evaluation."""
    evaluation = config.evaluation
    stride = evaluation.stride
    return InferenceSettings(
        window=model_config(config).resolution,
        stride=None if stride is None else (stride, stride),
        mode=evaluation.mode,
        short_side=evaluation.short_side,
        long_side=config.segmentation.long_side,
        scales=tuple(evaluation.scales),
        flip=evaluation.flip,
    )
