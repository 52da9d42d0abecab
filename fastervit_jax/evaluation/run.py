"""Evaluating a module on a data set, from images to numbers."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.data import EvalTransform, Source, eval_batches
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, CropMode
from fastervit_jax.data.sources.digits import default_root
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.evaluation.progress import EvaluationProgress
from fastervit_jax.evaluation.real_labels import judged_by
from fastervit_jax.evaluation.result import Result
from fastervit_jax.evaluation.task import Task, open_task
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import Arrays, flatten, unflatten
from fastervit_jax.parallel.mesh import batch_shards, make_mesh, replicated
from fastervit_jax.runs.workdir import load_config
from fastervit_jax.weights.directory import WeightsInfo
from fastervit_jax.weights.loading import Loaded, Weights, load_model, open_weights


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate, whatever the network and the data.

    Attributes:
        batch_size: images a step, over all devices.
        num_workers: processes that decode; 0 means a thread.
        crop_mode: "center" or "squash"; None means what belongs to benchmark and network.
        crop_fraction: the crop's share of the scaled image; None likewise.
        deploy: evaluate the folded network of `model.deploy()`.
        say: takes lines for people; None for silence, without a progress bar.
    """

    batch_size: int = 128
    num_workers: int = 0
    crop_mode: CropMode | None = None
    crop_fraction: float | None = None
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
    """Evaluates weights on a data set, with the preprocessing that belongs to both.

    Args:
        weights: a converted directory, an official torch file, or a work directory of train.py.
        dataset: what to evaluate on (`evaluation.task.open_task`); None, for a work directory, is
            what it was validated on.
        model_name: an official model name; None where the weights say what they are.
        model_options: changes to the named network.
        ema: take the EMA of the weights (`weights.loading.open_weights`).
        data_dir: where TFDS sets are prepared.
        real_labels: the label file of ImageNet-ReaL.
        dtype: type of the computation; by default the run's own for a work directory, else float32.
        options: how to evaluate.

    Raises:
        ValueError: weights and data cannot be used together; the message says why.
    """
    options = options or EvaluationOptions()
    opened = open_weights(weights, ema=ema)
    if opened.kind == "workdir":
        run = load_config(weights)
        dtype = dtype or run.model.dtype
        if dataset is None:
            dataset, data_dir = run.data.validation, data_dir or _readable(run.data)
    elif dataset is None:
        raise ValueError(
            "--dataset is missing: name what to evaluate on, such as imagenet or folder:PATH."
        )
    loaded = load_for_evaluation(opened, model_name, model_options or {}, dtype, options)
    task = open_task(
        dataset,
        model_classes=loaded.info.class_names,
        num_logits=loaded.model.config.num_classes,
        data_dir=data_dir,
        real_labels=real_labels,
    )
    return evaluate_task(loaded.model, loaded.info, task, weights=weights, options=options)


def _readable(data: ml_collections.ConfigDict) -> str | None:
    """Where a run's validation images are read from.

    The digits are written where they are missing; a work directory from elsewhere must not decide
    where that is.
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
    """`weights.loading.load_model`, saying what there is to say."""
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


def evaluate_task(
    model: FasterViT,
    info: WeightsInfo,
    task: Task,
    *,
    weights: str = "",
    options: EvaluationOptions | None = None,
) -> Result:
    """Evaluates a network on a task, with the crop that belongs to both.

    Args:
        model: the network.
        info: what it is: name and preprocessing.
        task: of `evaluation.task.open_task`.
        weights: where its weights come from, for the record.
        options: how to evaluate.

    Raises:
        ValueError: there are no images, one cannot be decoded, or the answers are not finite.
    """
    options = options or EvaluationOptions()
    own = info.preprocessing
    mode, fraction = task.crop or (own.crop_mode, own.crop_fraction)
    if options.crop_fraction is not None:
        fraction = options.crop_fraction
    transform = EvalTransform(model.config.resolution, fraction, options.crop_mode or mode)
    if options.say and task.remark:
        options.say(task.remark)
    evaluation = evaluate_model(
        model.deploy() if options.deploy else model,
        task.source,
        transform,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        logits=task.logits,
        mean=own.mean,
        std=own.std,
        show_progress=options.say is not None,
    )
    if task.real_labels is not None:
        evaluation = judged_by(task.real_labels, evaluation)
    return Result(
        evaluation=evaluation,
        task=task,
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
    """Evaluates a module on every image of a data set, once. Every host must call it.

    Args:
        model: the network, deployed or not.
        source: the data set; its classes are those of `logits`.
        transform: the images' preprocessing.
        batch_size: images a step, over all devices; rounded up to what they divide.
        num_workers: processes that decode; 0 means a thread.
        mesh: where to run; by default all devices of all hosts.
        logits: the outputs that answers are taken over; None means all.
        mean: of each channel, for images from 0 to 1.
        std: standard deviation of each channel.
        show_progress: say how far it is, on the first host.

    Raises:
        ValueError: the number of classes differs, there are no images, one cannot be decoded, or
            the network's answers are not finite.
    """
    num_classes = model.config.num_classes if logits is None else len(logits)
    if num_classes != source.num_classes:
        raise ValueError(
            f"The model has {num_classes} classes, the data set {source.num_classes}: these are "
            f"weights of another task, or another data set."
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
    """Any module in inference mode, as a function of its arrays.

    Of all its arrays: those of a deployed one are neither parameters nor statistics.
    """

    def __init__(self, model: nnx.Module):
        model = nnx.clone(model)
        model.eval()
        graph, state = nnx.split(model)
        self._graph = graph
        self.arrays: Arrays = flatten(state)

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """Logits of normalised images."""
        return nnx.merge(self._graph, unflatten({**params, **statistics}))(images)


def _check_finite(evaluation: Evaluation, source: Source) -> None:
    bad = np.flatnonzero(~np.isfinite(evaluation.predictions.loss))
    if len(bad):
        first = source[int(evaluation.predictions.index[bad[0]])].key
        raise ValueError(
            f"The network's answers are not finite for {len(bad)} of {evaluation.images} images, "
            f"{first} the first: the weights are damaged, or of a run that diverged."
        )
