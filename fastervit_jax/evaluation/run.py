"""Evaluate weights or a module on a data set."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.data import Decoding, EvalTransform, Source, eval_batches
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, CropMode, check_rgb
from fastervit_jax.data.sources import describe_classes
from fastervit_jax.data.sources.digits import default_root
from fastervit_jax.evaluation.dataset import EvaluationSet, open_evaluation_set
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.evaluation.progress import EvaluationProgress
from fastervit_jax.evaluation.real_labels import judged_by
from fastervit_jax.evaluation.result import Result
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import Arrays, flatten, unflatten
from fastervit_jax.parallel.mesh import batch_shards, make_mesh, replicated
from fastervit_jax.runs.workdir import load_config
from fastervit_jax.weights.directory import WeightsInfo
from fastervit_jax.weights.loading import Loaded, Weights, load_model, open_weights


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes:
        batch_size: images per step, over all devices.
        num_workers: processes that decode images; 0 means a thread.
        crop_mode: "center" or "squash". None means the crop mode of the benchmark or the network.
        crop_fraction: size of the crop divided by the size of the resized image. None means the
            fraction of the benchmark or the network.
        transparency: what becomes of transparent pixels (`data.Decoding`). None means as in the run
            for a work directory, otherwise "drop".
        exif: what becomes of the EXIF orientation. None means as in the run for a work directory,
            otherwise "ignore".
        deploy: whether to evaluate the deployed network (`model.deploy()`).
        say: function that shows one line of text to the user. None shows nothing and no progress
            bar.
    """

    batch_size: int = 128
    num_workers: int = 0
    crop_mode: CropMode | None = None
    crop_fraction: float | None = None
    transparency: Literal["drop", "white", "black"] | None = None
    exif: Literal["ignore", "apply"] | None = None
    deploy: bool = False
    say: Callable[[str], None] | None = None


def evaluate_weights(
    weights: str,
    dataset: str | None,
    *,
    model_name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    ema: bool | None = None,
    data_dir: str | None = None,
    real_labels: str | None = None,
    dtype: str | None = None,
    options: EvaluationOptions | None = None,
) -> Result:
    """Evaluates weights on a data set, with the preprocessing of both.

    Args:
        weights: a converted directory, an official torch file, or a work directory of train.py.
        dataset: the data set (see `evaluation.dataset.open_evaluation_set`). For a work directory,
            None means the validation set of the run.
        model_name: an official model name; None uses the name stored with the weights.
        model_options: options of the network that differ from the named model.
        ema: whether to use the EMA of the weights (see `weights.loading.open_weights`).
        data_dir: directory of the prepared TFDS data sets.
        real_labels: path of the label file of ImageNet-ReaL.
        dtype: dtype of the computation. The default is the dtype of the run for a work directory,
            and float32 for other weights.
        options: options of the evaluation.

    Raises:
        ValueError: weights and data set cannot be used together. The message says why.
    """
    options = options or EvaluationOptions()
    opened = open_weights(weights, ema=ema)
    if opened.kind == "workdir":
        run = load_config(weights)
        dtype = dtype or run.model.dtype
        options = dataclasses.replace(
            options,
            transparency=options.transparency or run.data.transparency,
            exif=options.exif or run.data.exif,
        )
        if dataset is None:
            dataset, data_dir = run.data.validation, data_dir or _readable(run.data)
    elif dataset is None:
        raise ValueError("Missing --dataset: pass a data set, for example imagenet or folder:PATH.")
    loaded = load_for_evaluation(opened, model_name, model_options or {}, dtype, options)
    evaluation_set = open_evaluation_set(
        dataset,
        model_classes=loaded.info.class_names,
        num_logits=loaded.model.config.num_classes,
        data_dir=data_dir,
        real_labels=real_labels,
    )
    return evaluate_set(loaded.model, loaded.info, evaluation_set, weights=weights, options=options)


def _readable(data: ml_collections.ConfigDict) -> str | None:
    """Returns the data directory for the validation images of a run.

    The digits are written if they are missing. A work directory from another machine must not
    determine where they are written.
    """
    writes = data.validation.startswith("digits:") and not default_root(data.data_dir).is_dir()
    return None if writes else data.data_dir


def load_for_evaluation(
    opened: Weights,
    name: str | None,
    model_options: Mapping[str, Any],
    dtype: str | None,
    options: EvaluationOptions,
) -> Loaded:
    """Loads a model with `weights.loading.load_model` and shows its messages."""
    loaded = load_model(
        name,
        opened,
        model_options,
        dtype=jnp.dtype(dtype or "float32"),
        progress=options.say is not None,
    )
    if options.say:
        for line in loaded.lines:
            options.say(line)
    return loaded


def evaluate_set(
    model: FasterViT,
    info: WeightsInfo,
    evaluation_set: EvaluationSet,
    *,
    weights: str = "",
    options: EvaluationOptions | None = None,
) -> Result:
    """Evaluates a network on an evaluation set, with the crop of the benchmark or the network.

    Args:
        model: the network.
        info: name and preprocessing of the network.
        evaluation_set: result of `evaluation.dataset.open_evaluation_set`.
        weights: path of the weights, for the result.
        options: options of the evaluation.

    Raises:
        ValueError: there are no images, an image cannot be decoded, or a loss is not finite.
    """
    options = options or EvaluationOptions()
    own = info.preprocessing
    mode, fraction = evaluation_set.crop or (own.crop_mode, own.crop_fraction)
    if options.crop_fraction is not None:
        fraction = options.crop_fraction
    decoding = Decoding(options.transparency or "drop", options.exif or "ignore")
    transform = EvalTransform(
        model.config.resolution, fraction, options.crop_mode or mode, decoding
    )
    if options.say:
        options.say(
            f"{evaluation_set.title}: {describe_classes(evaluation_set.source.class_names)}"
        )
        if evaluation_set.remark:
            options.say(evaluation_set.remark)
    evaluation = evaluate_model(
        model.deploy() if options.deploy else model,
        evaluation_set.source,
        transform,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        logits=evaluation_set.logits,
        mean=own.mean,
        std=own.std,
        show_progress=options.say is not None,
    )
    if evaluation_set.real_labels is not None:
        evaluation = judged_by(evaluation_set.real_labels, evaluation)
    return Result(
        evaluation=evaluation,
        evaluation_set=evaluation_set,
        transform=transform,
        model=info.model,
        weights=weights,
        dtype=str(model.dtype),
        deployed=options.deploy,
    )


def evaluate_model(
    model: FasterViT,
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    mesh: Mesh | None = None,
    logits: Sequence[int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    show_progress: bool = False,
) -> Evaluation:
    """Evaluates a module once on every image of a data set. Every host must call it.

    Args:
        model: the network, deployed or not.
        source: the data set. Its classes are those of `logits`.
        transform: preprocessing of the images.
        batch_size: images per step, over all devices. It is rounded up to a multiple of the number
            of devices that share a batch.
        num_workers: processes that decode images; 0 means a thread.
        mesh: the mesh of devices; by default all devices of all hosts.
        logits: indices of the logits to use; None means all.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        show_progress: whether the first host shows the progress.

    Raises:
        ValueError: the number of classes differs, there are no images, an image cannot be decoded,
            or a loss is not finite.
    """
    check_rgb(model.config.in_chans)
    num_classes = model.config.num_classes if logits is None else len(logits)
    if num_classes != source.num_classes:
        raise ValueError(
            f"Invalid data set: expected {num_classes} classes, the number of classes of the "
            f"model, got {source.num_classes}. Use other weights or another data set."
        )
    mesh = mesh or make_mesh()
    hosts = jax.process_count()
    shards = batch_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    inference = _Inference(model)
    eval_step = make_eval_step(
        inference, mesh, dtype=model.dtype, logits=logits, mean=mean, std=std
    )
    arrays = jax.device_put(inference.arrays, replicated(mesh))
    with contextlib.ExitStack() as stack:
        batches = eval_batches(
            source,
            transform,
            batch_size=batch_size,
            num_workers=num_workers,
            host_index=jax.process_index(),
            host_count=hosts,
        )
        stack.callback(batches.close)
        images_done = None
        if show_progress and jax.process_index() == 0:
            progress = stack.enter_context(
                contextlib.closing(EvaluationProgress(len(source), hosts=hosts))
            )
            images_done = progress.images_done
        evaluation = evaluate(eval_step, arrays, {}, batches, mesh, images_done=images_done)
    _check_finite(evaluation, source)
    return evaluation


class _Inference:
    """A module in inference mode, as a function of all its arrays.

    The arrays of a deployed module are neither parameters nor statistics.
    """

    def __init__(self, model: nnx.Module):
        model = nnx.clone(model)
        model.eval()
        graph, state = nnx.split(model)
        self._graph = graph
        self.arrays: Arrays = flatten(state)

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """Returns the logits of normalized images."""
        return nnx.merge(self._graph, unflatten({**params, **statistics}))(images)


def _check_finite(evaluation: Evaluation, source: Source) -> None:
    bad = np.flatnonzero(~np.isfinite(evaluation.predictions.loss))
    if len(bad):
        first = source[int(evaluation.predictions.index[bad[0]])].key
        raise ValueError(
            f"The loss of {len(bad)} of {evaluation.images} images is not finite. The first of "
            f"these images is {first}. The weights are damaged, or training diverged."
        )
