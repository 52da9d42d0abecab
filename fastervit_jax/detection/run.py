"""Evaluate a detector's weights, and detect objects on single images."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from fastervit_jax.augmentation.detection import Plan, ResizeSettings, apply_to_image, resized
from fastervit_jax.data import Decoding
from fastervit_jax.data.coco_names import COCO_NAMES
from fastervit_jax.data.preprocessing import check_rgb, normalize_padded
from fastervit_jax.data.sources.coco import CocoSource, open_boxes
from fastervit_jax.detection.batches import BatchSettings, eval_batches
from fastervit_jax.detection.dino import DINO, Inputs
from fastervit_jax.detection.evaluation import (
    DetectionEvaluation,
    detect,
    make_eval_step,
    score,
)
from fastervit_jax.detection.postprocess import Detections, best_detections
from fastervit_jax.evaluation.progress import EvaluationProgress
from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import batch_shards, make_mesh, replicated
from fastervit_jax.runs.config import default_config
from fastervit_jax.runs.workdir import load_config
from fastervit_jax.weights.loading import load_model, open_weights

_STEPS = 6
"""Images of `predict` are padded to one of so many heights and widths, up to the long side."""


@dataclasses.dataclass(frozen=True)
class DetectionResult:
    """An evaluation, and what was evaluated.

    Attributes:
        evaluation: the numbers and the detections.
        source: the data set.
        class_names: names of the model's classes.
        model: name of the model.
        dataset: name of the data set.
    """

    evaluation: DetectionEvaluation
    source: CocoSource
    class_names: Sequence[str]
    model: str
    dataset: str

    def summary(self) -> dict[str, Any]:
        """What the command prints last: the numbers by name, and what was evaluated."""
        return {
            "images": self.evaluation.images,
            **self.evaluation.summary(),
            "model": self.model,
            "dataset": self.dataset,
        }


def evaluate_weights(
    weights: str,
    dataset: str | None,
    *,
    model_name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    ema: bool | None = None,
    data_dir: str | None = None,
    dtype: str | None = None,
    transparency: Literal["drop", "white", "black"] | None = None,
    exif: Literal["ignore", "apply"] | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    say: Callable[[str], None] | None = None,
) -> DetectionResult:
    """Evaluates a detector on a data set in COCO's format. Every host must call it.

    Args:
        weights: a converted directory, an official file, or a work directory of train.py.
        dataset: such as `coco:/data/coco@val2017`; None: the validation set of the run.
        model_name: name of the model; None uses the name stored with the weights.
        model_options: options of the network that differ from the named model.
        ema: whether to use the EMA of the weights (see `weights.loading.open_weights`).
        data_dir: directory of the scattered digits.
        dtype: dtype of the computation; by default that of the run, or float32.
        transparency: what becomes of transparent pixels (`data.Decoding`); by default as in the
            run, or "drop".
        exif: what becomes of the EXIF orientation; by default as in the run, or "ignore".
        batch_size: images per step, over all devices; it is rounded up to a multiple of those.
        num_workers: processes that decode images; 0 means a thread.
        say: function that shows one line of text to the user; None shows no progress.

    Raises:
        ValueError: weights and data set cannot be used together; the message says why.
        ImportError: pycocotools is not installed.
    """
    opened = open_weights(weights, ema=ema)
    config = load_config(weights) if opened.kind == "workdir" else default_config()
    if opened.kind == "workdir":
        dtype = dtype or config.model.dtype
        dataset = dataset or config.data.validation
    if dataset is None:
        raise ValueError("Missing --dataset: expected one, such as coco:/data/coco@val2017.")
    decoding = Decoding(transparency or config.data.transparency, exif or config.data.exif)
    source = open_boxes(dataset, data_dir=data_dir, decoding=decoding)
    loaded = load_model(
        model_name, opened, model_options or {}, dtype=jnp.dtype(dtype or "float32"), progress=True
    )
    if say is not None:
        for line in loaded.lines:
            say(line)
    model = loaded.model
    check_rgb(model.config.backbone.in_chans)
    names = class_names(model)
    category_ids = _category_ids(names, source)
    preprocessing = model.preprocessing
    settings = BatchSettings(
        buckets=tuple(tuple(size) for size in config.data.buckets),
        max_boxes=1,
        resize=ResizeSettings(long_side=preprocessing.long_side),
        eval_short_side=preprocessing.short_side,
    )

    mesh = make_mesh()
    shards = batch_shards(mesh)
    params, statistics = jax.device_put(arrays_of(model), replicated(mesh))
    step = make_eval_step(PureModel(model), mesh, dtype=model.dtype)
    with contextlib.ExitStack() as stack:
        batches = eval_batches(
            source,
            settings,
            batch_size=-(-batch_size // shards) * shards,
            num_workers=num_workers,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
        )
        stack.callback(batches.close)
        images_done: Callable[[int], None] = _nothing
        if say and jax.process_index() == 0:
            progress = EvaluationProgress(len(source), hosts=jax.process_count())
            images_done = stack.enter_context(contextlib.closing(progress)).images_done
        found = detect(step, params, statistics, batches, mesh, images_done=images_done)
    evaluation = score(source.annotations, source.image_ids, category_ids, found)
    return DetectionResult(evaluation, source, names, loaded.info.model, dataset)


def _nothing(images: int) -> None:
    del images


def class_names(model: DINO) -> Sequence[str]:
    """The names of a detector's classes: its own, or COCO's for 91 classes; else numbers."""
    own = getattr(model, "class_names", None)
    count = model.config.num_classes
    if own is not None:
        return own
    return COCO_NAMES if count == len(COCO_NAMES) else [f"class {i}" for i in range(count)]


def _category_ids(names: Sequence[str], source: CocoSource) -> dict[int, int]:
    """The id of each of the model's classes in a data set, by name.

    Raises:
        ValueError: the model does not know a class of the data set.
    """
    label_of = {name: label for label, name in enumerate(names) if name}
    ids = {}
    for name, category in zip(source.class_names, source.category_ids, strict=True):
        if name and name not in label_of:
            raise ValueError(
                f"Invalid data set: {source.annotations} has the class {name!r}, which the model "
                f"does not know. Its classes: {', '.join(list(label_of)[:8])}, …"
            )
        if name:
            ids[label_of[name]] = category
    return ids


def detect_on_images(
    model: DINO, images: Iterable[Image.Image]
) -> Iterable[tuple[Image.Image, Detections]]:
    """Detects objects on RGB images, one after the other; boxes are in their own pixels.

    Each image is resized as in evaluation and padded to one of a few sizes. A program is compiled
    for each size that occurs.
    """
    preprocessing = model.preprocessing
    unit = -(-preprocessing.long_side // _STEPS)
    model = nnx.view(model, deterministic=True, use_running_average=True)
    for image in images:
        size = (image.height, image.width)
        target = resized(size, preprocessing.short_side, preprocessing.long_side)
        padded = np.zeros((*(-(-side // unit) * unit for side in target), 3), np.uint8)
        pixels = apply_to_image(image, Plan(False, None, None, target))
        padded[: target[0], : target[1]] = np.asarray(pixels)
        found = _detect(model, *map(jnp.asarray, (padded[None], [target], [size])))
        yield image, Detections(*(np.asarray(each)[0] for each in found))


@nnx.jit
def _detect(model: DINO, images: jax.Array, sizes: jax.Array, original: jax.Array) -> Detections:
    outputs = model(Inputs(normalize_padded(images, sizes, model.dtype), sizes))
    return best_detections(outputs.logits[-1], outputs.boxes[-1], original)
