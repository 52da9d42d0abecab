"""Object detection as a task of the trainer."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.augmentation.detection import ResizeSettings
from fastervit_jax.data import Decoding, TrainLoader, check_same_classes
from fastervit_jax.data.preprocessing import normalize_padded
from fastervit_jax.data.sources import describe_classes
from fastervit_jax.data.sources.coco import CocoSource, open_boxes
from fastervit_jax.detection.batches import (
    BatchSettings,
    check_boxes,
    eval_batches,
    train_batches,
)
from fastervit_jax.detection.criterion import GroundTruth, all_losses, total_loss
from fastervit_jax.detection.denoising import DenoisingSettings, denoising_queries, layout
from fastervit_jax.detection.dino import DINO, FAMILY, Inputs
from fastervit_jax.detection.evaluation import (
    NUMBERS,
    DetectionEvaluation,
    check_pycocotools,
    detect,
    make_eval_step,
    score,
)
from fastervit_jax.detection.pictures import draw_detections
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.runs.config import batch_norm_group, model_config
from fastervit_jax.runs.config_checks import check_config
from fastervit_jax.runs.state import TrainState
from fastervit_jax.training.finetuning import load_backbone, load_initial_model
from fastervit_jax.training.task import Batch, Data, Evaluator, Metrics, Network, Panel


@dataclasses.dataclass(frozen=True)
class DetectionObjective:
    """The losses of DINO (`detection.criterion`).

    Attributes:
        denoising: how denoising queries are made.
        num_classes: number of classes.
        queries: number of queries without denoising.
        per_gpu: consecutive images that are a batch of one GPU of the reference.
        dtype: type of the images.
    """

    denoising: DenoisingSettings
    num_classes: int
    queries: int
    per_gpu: int
    dtype: Any

    def prepare(self, key: jax.Array, batch: Batch, mesh: Mesh) -> Batch:
        """A batch of `detection.batches`, with normalized images, and the boxes per image."""
        del key, mesh
        images = normalize_padded(batch["image"], batch["size"], self.dtype)
        count = batch["count"]
        # As on the GPUs of the reference: the mean number of boxes of a GPU, at least 1.
        per_image = jnp.maximum(count.sum() / len(count), 1 / self.per_gpu)
        kept = {name: batch[name] for name in ("size", "labels", "boxes", "count")}
        return {"image": images, "divisor": jnp.full(len(count), per_image, jnp.float32), **kept}

    def loss(
        self, network: Network, params: Arrays, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
        """The loss; its metrics are parts of it (`criterion.total_loss`), divided as it is."""
        noise_key, network_key = jax.random.split(key)
        truth = GroundTruth(batch["labels"], batch["boxes"], batch["count"])
        where = noisy = None
        slots = self.denoising.slots(truth.labels.shape[1])
        if slots:
            where = layout(truth.counts, slots, self.denoising, self.per_gpu)
            noisy = denoising_queries(
                noise_key,
                truth.labels,
                truth.boxes,
                where,
                self.denoising,
                num_classes=self.num_classes,
                queries=self.queries,
            )
        inputs = Inputs(batch["image"], batch["size"], noisy)
        outputs, statistics = network.train(params, state.statistics, inputs, network_key)
        losses = all_losses(outputs, truth, where, network.mesh)
        parts = total_loss(losses, truth, where)
        means = {name: jnp.mean(value / batch["divisor"]) for name, value in parts.items()}
        return means.pop("loss"), (means, statistics)


class Detection:
    """Object detection on data sets in COCO's format (implements `training.task.Task`)."""

    panels = (
        Panel("loss", {"loss": "all", "denoising": "denoising", "selected": "proposals"}),
        Panel("last layer", {"class": "classes", "box": "boxes (L1)", "giou": "boxes (GIoU)"}),
        Panel("AP", {"validation_AP": "AP", "validation_AP50": "AP50"}),
        Panel("learning rate", {"learning_rate": "learning rate"}),
    )
    headline = "AP"

    def check(
        self, config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int, tensor: int
    ) -> None:
        """Raises ValueError for a config that no run can have."""
        check_config(config, batch_shards=batch_shards, hosts=hosts, tensor=tensor, metrics=NUMBERS)
        batch_settings(config)
        if config.data.max_boxes > model_config(config).queries:
            raise ValueError(
                f"Invalid config.data.max_boxes={config.data.max_boxes}: expected at most the "
                f"{model_config(config).queries} queries of the model (config.model.queries). Each "
                "box needs one."
            )

    def open_data(self, config: ml_collections.ConfigDict) -> Data:
        """Opens the training and the validation set.

        Raises:
            ValueError: a set cannot be read, the two have different classes, or the model has
                another number of them, or an image has too many boxes.
        """
        check_pycocotools()  # before an epoch of training, not after
        decoding = Decoding(config.data.transparency, config.data.exif)
        training: Any = open_boxes(
            config.data.train, data_dir=config.data.data_dir, decoding=decoding
        )
        validation: Any = open_boxes(
            config.data.validation, data_dir=config.data.data_dir, decoding=decoding
        )
        check_same_classes(training, validation)
        check_boxes(training, config.data.max_boxes)
        classes = training.num_classes
        if classes != config.model.num_classes:
            raise ValueError(
                f"config.model.num_classes={config.model.num_classes}, but {config.data.train} has "
                f"{classes} classes: set the key to that."
            )
        if jax.process_index() == 0:
            names = [name for name in training.class_names if name]
            dropped = ", ".join(f"{n} {why}" for why, n in training.dropped.items() if n)
            left_out = f" (left out: {dropped})" if dropped else ""
            print(
                f"{config.data.train}: {len(training)} images, {training.num_boxes} boxes"
                f"{left_out}; {describe_classes(names)}",
                flush=True,
            )
        return Data(training, validation)

    def network(self, config: ml_collections.ConfigDict) -> DINO:
        """The network, with shapes in place of weights."""
        return FAMILY.abstract(model_config(config), dtype=jnp.dtype(config.model.dtype))

    def initial_network(self, config: ml_collections.ConfigDict) -> DINO:
        """The network with new weights, `config.finetune.weights` or `config.finetune.backbone`."""
        dtype = jnp.dtype(config.model.dtype)
        if config.finetune.weights:
            return load_initial_model(config, dtype)
        model = DINO(model_config(config), dtype=dtype, rngs=nnx.Rngs(config.seed))
        if config.finetune.backbone:
            load_backbone(model, config.finetune.backbone)
        return model

    def train_loader(
        self, config: ml_collections.ConfigDict, source: CocoSource, start_step: int, num_steps: int
    ) -> TrainLoader:
        """This host's batches of steps start_step … num_steps − 1."""
        return train_batches(
            source,
            batch_settings(config),
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
        """Shapes and types of a global batch in the first bucket."""
        settings, n = batch_settings(config), config.batch_size
        boxes = settings.max_boxes
        shapes = {
            "image": ((n, *settings.buckets[0], 3), jnp.uint8),
            "size": ((n, 2), jnp.int32),
            "labels": ((n, boxes), jnp.int32),
            "boxes": ((n, boxes, 4), jnp.float32),
            "count": ((n,), jnp.int32),
            "position": ((n,), jnp.int32),
        }
        return {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}

    def objective(
        self, config: ml_collections.ConfigDict, *, epoch_steps: int, mixing_group: int
    ) -> DetectionObjective:
        """What a step minimizes."""
        network = model_config(config)
        return DetectionObjective(
            denoising=DenoisingSettings(**config.denoising),
            num_classes=network.num_classes,
            queries=network.queries,
            per_gpu=batch_norm_group(config),
            dtype=jnp.dtype(config.model.dtype),
        )

    def evaluator(
        self, config: ml_collections.ConfigDict, source: CocoSource, model: PureModel, mesh: Mesh
    ) -> Evaluator:
        """Compiles what evaluates arrays on a data set."""
        step = make_eval_step(model, mesh, dtype=jnp.dtype(config.model.dtype))
        category_ids = dict(enumerate(source.category_ids))

        def run(params: Arrays, statistics: Arrays, images_done) -> DetectionEvaluation:
            loader = eval_batches(
                source,
                batch_settings(config),
                batch_size=config.evaluation.batch_size,
                num_workers=config.data.num_workers,
                host_index=jax.process_index(),
                host_count=jax.process_count(),
            )
            with contextlib.closing(loader) as batches:
                found = detect(step, params, statistics, batches, mesh, images_done=images_done)
            return score(source.annotations, source.image_ids, category_ids, found)

        return run

    def draw(
        self, source: CocoSource, evaluation: DetectionEvaluation, path: epath.PathLike
    ) -> None:
        """Draws images with their detections."""
        draw_detections(source, evaluation.detections, path)


def batch_settings(config: ml_collections.ConfigDict) -> BatchSettings:
    """How batches are made.

    Raises:
        ValueError: a bucket is no size.
    """
    resize = {name: _tupled(value) for name, value in config.resize.items()}
    return BatchSettings(
        buckets=_tupled(config.data.buckets),
        max_boxes=config.data.max_boxes,
        resize=ResizeSettings(**resize, flip=config.flip),
        eval_short_side=config.evaluation.short_side,
        window=config.data.bucket_window,
    )


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list | tuple) else value
