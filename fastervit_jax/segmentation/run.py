"""Evaluate a segmenter's weights, and segment single images."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from fastervit_jax.data.ade20k_names import ADE20K_NAMES
from fastervit_jax.data.images import AS_THE_REFERENCE, Decoding
from fastervit_jax.data.preprocessing import check_rgb, normalize_padded
from fastervit_jax.data.sources.masks import MaskedSource, open_masks
from fastervit_jax.evaluation.progress import EvaluationProgress
from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import make_mesh, replicated
from fastervit_jax.runs.workdir import load_config
from fastervit_jax.segmentation.evaluation import SegmentationEvaluation, evaluate, local_scores
from fastervit_jax.segmentation.inference import InferenceSettings, Scores, class_maps
from fastervit_jax.segmentation.upernet import UperNet
from fastervit_jax.weights.loading import load_model, open_weights


@dataclasses.dataclass(frozen=True)
class SegmentationResult:
    """An evaluation, and what was evaluated.

    Attributes:
        evaluation: the numbers, and the class maps of some images.
        source: the data set.
        segment: images → their class maps, in the classes of the data set.
        model: name of the model.
        dataset: name of the data set.
    """

    evaluation: SegmentationEvaluation
    source: MaskedSource
    segment: Callable[[Sequence[Image.Image]], Iterator[np.ndarray]]
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
    batch_size: int = 8,
    transparency: str | None = None,
    exif: str | None = None,
    mode: str | None = None,
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
    say: Callable[[str], None] | None = None,
) -> SegmentationResult:
    """Evaluates a segmenter on images with masks. Every host must call it.

    What is None is as in the run, for a work directory, or else the usual value.

    Args:
        weights: a converted directory, an official file, or a work directory of train.py.
        dataset: such as `ade20k:/data/ADEChallengeData2016@validation`.
        model_name: name of the model; None uses the name stored with the weights.
        model_options: options of the network that differ from the named model.
        ema: whether to use the EMA of the weights (see `weights.loading.open_weights`).
        data_dir: directory of TFDS sets and of the scattered digits.
        dtype: dtype of the computation.
        batch_size: images and windows at a time, over all hosts.
        transparency: what becomes of transparent pixels (`data.Decoding`).
        exif: what becomes of the EXIF orientation.
        mode: `slide` or `whole` (`InferenceSettings`).
        scales: factors on the image size that are averaged.
        flip: whether to average over mirrored images too.
        say: function that shows one line of text to the user; None shows no progress.

    Raises:
        ValueError: weights and data set cannot be used together; the message says why.
    """
    opened = open_weights(weights, ema=ema)
    config = load_config(weights) if opened.kind == "workdir" else None
    if config is not None:
        dtype = dtype or config.model.dtype
        dataset = dataset or config.data.validation
        transparency = transparency or config.data.transparency
        exif = exif or config.data.exif
        mode = mode or config.evaluation.mode
        scales = scales or tuple(config.evaluation.scales)
        flip = config.evaluation.flip if flip is None else flip
    if dataset is None:
        raise ValueError(
            "Missing --dataset: expected one, such as ade20k:/data/ADEChallengeData2016@validation."
        )
    source = open_masks(dataset, data_dir=data_dir)
    loaded = load_model(
        model_name, opened, model_options or {}, dtype=jnp.dtype(dtype or "float32"), progress=True
    )
    if say is not None:
        for line in loaded.lines:
            say(line)
    model = loaded.model
    check_rgb(model.config.backbone.in_chans)
    labels = _labels(class_names(model), source)
    settings = inference_settings(
        model, mode=mode or "slide", scales=tuple(scales or (1.0,)), flip=bool(flip)
    )
    decoding: Any = Decoding(
        transparency or AS_THE_REFERENCE.transparency,  # type: ignore[arg-type]
        exif or AS_THE_REFERENCE.exif,  # type: ignore[arg-type]
    )

    mesh = make_mesh()
    arrays = jax.device_put(arrays_of(model), replicated(mesh))
    scores = local_scores(PureModel(model), mesh, dtype=model.dtype)(*arrays)
    with contextlib.ExitStack() as stack:
        images_done: Callable[[int], None] = _nothing
        if say and jax.process_index() == 0:
            progress = EvaluationProgress(len(source), hosts=jax.process_count())
            images_done = stack.enter_context(contextlib.closing(progress)).images_done
        evaluation = evaluate(
            scores,
            source,
            settings,
            batch_size=batch_size,
            decoding=decoding,
            labels=labels,
            images_done=images_done,
        )

    def segment(images: Sequence[Image.Image]) -> Iterator[np.ndarray]:
        devices = jax.local_device_count()
        for classes in class_maps(scores, images, settings, batch_size=devices):
            yield labels[classes]

    return SegmentationResult(evaluation, source, segment, loaded.info.model, dataset)


def _nothing(images: int) -> None:
    del images


def class_names(model: UperNet) -> Sequence[str]:
    """The names of a segmenter's classes: its own, or ADE20K's for 150 classes; else numbers."""
    own = getattr(model, "class_names", None)
    if own is not None:
        return own
    count = model.config.num_classes
    return ADE20K_NAMES if count == len(ADE20K_NAMES) else [f"class {i}" for i in range(count)]


def _labels(names: Sequence[str], source: MaskedSource) -> np.ndarray:
    """The data set's label of each of the model's classes, by name.

    Raises:
        ValueError: the classes differ.
    """
    if set(names) != set(source.class_names):
        missing = [name for name in source.class_names if name not in names]
        unknown = [name for name in names if name not in source.class_names]
        raise ValueError(
            f"Invalid data set: expected the model's {len(names)} classes, got "
            f"{source.num_classes}. Only in the data set: {', '.join(missing[:5]) or 'none'}. Only "
            f"in the model: {', '.join(unknown[:5]) or 'none'}."
        )
    label_of = {name: label for label, name in enumerate(source.class_names)}
    return np.asarray([label_of[name] for name in names])


def inference_settings(model: UperNet, **options: Any) -> InferenceSettings:
    """How class maps are made, by a model's own preprocessing; options change it."""
    preprocessing = model.preprocessing
    sides = dict(short_side=preprocessing.short_side, long_side=preprocessing.long_side)
    return InferenceSettings(**{"window": model.config.resolution, **sides, **options})


def segment_images(
    model: UperNet, images: Sequence[Image.Image], settings: InferenceSettings, *, batch_size: int
) -> Iterator[np.ndarray]:
    """Segments RGB images; yields the class of each of their pixels, int32 [H, W]."""
    if not model.deployed:
        model = nnx.view(model, deterministic=True, use_running_average=True)

    def scores(windows: np.ndarray, sizes: np.ndarray) -> jax.Array:
        return _scores(model, windows, sizes)

    run: Scores = scores
    return class_maps(run, images, settings, batch_size=batch_size)


@nnx.jit
def _scores(model: UperNet, windows: Any, sizes: Any) -> jax.Array:
    return model.scores(normalize_padded(windows, sizes, model.dtype))
