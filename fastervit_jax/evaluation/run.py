"""Evaluating a module on a data set, from images to numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.conversion.weights import load_model, open_weights
from fastervit_jax.data import EvalTransform, Source, eval_batches, open_source
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.models import FasterViT
from fastervit_jax.models.functional import PureModel, arrays_of
from fastervit_jax.training.mesh import batch_shards, make_mesh, replicated
from fastervit_jax.training.workdir import load_config


def evaluate_weights(
    weights: str,
    dataset: str | None,
    *,
    model_name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    average: bool | None = None,
    data_dir: str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    dtype: str | None = None,
) -> Evaluation:
    """Evaluates weights on a data set, with the preprocessing that belongs to them.

    Args:
        weights: a converted directory, an official torch file, or a work directory of train.py.
        dataset: what to evaluate on (`fastervit_jax.data.open_source`); None, for a work directory,
            is what it was validated on.
        model_name: an official model name; None where the weights say what they are.
        model_options: changes to the named network.
        average: take the moving average of the weights (`conversion.weights.open_weights`).
        data_dir: where TFDS sets are prepared.
        batch_size: images a step, over all devices.
        num_workers: processes that decode; 0 means a thread.
        dtype: type of the computation; by default the run's own for a work directory, else float32.

    Raises:
        ValueError: weights and data cannot be used together; the message says why.
    """
    opened = open_weights(weights, average=average)
    if opened.kind == "workdir":
        run = load_config(weights)
        dtype = dtype or run.model.dtype
        if dataset is None:
            dataset, data_dir = run.data.validation, data_dir or run.data.data_dir
    elif dataset is None:
        raise ValueError("--dataset is missing: name what to evaluate on, such as folder:PATH.")
    loaded = load_model(
        model_name, opened, model_options or {}, dtype=jnp.dtype(dtype or "float32")
    )
    for line in loaded.lines:
        print(line, flush=True)
    source = open_source(dataset, data_dir=data_dir)
    wanted = loaded.model.preprocessing
    transform = EvalTransform(
        loaded.model.config.resolution, wanted.crop_fraction, wanted.crop_mode
    )
    return evaluate_model(
        loaded.model, source, transform, batch_size=batch_size, num_workers=num_workers
    )


def evaluate_model(
    model: FasterViT,
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Evaluates a module on every image of a data set, once.

    Args:
        model: its head has as many classes as the data set.
        source: the data set.
        transform: the images' preprocessing.
        batch_size: images a step, over all devices; rounded up to what they divide.
        num_workers: processes that decode; 0 means a thread.
        mesh: where to run; by default all devices.

    Raises:
        ValueError: the model has another number of classes, or there are no images.
    """
    num_classes = model.config.num_classes
    if num_classes != source.num_classes:
        raise ValueError(
            f"The model has {num_classes} classes, the data set {source.num_classes}: these are "
            f"weights of another task, or another data set."
        )
    mesh = mesh or make_mesh()
    shards = batch_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    params, statistics = (jax.device_put(arrays, replicated(mesh)) for arrays in arrays_of(model))
    eval_step = make_eval_step(PureModel(nnx.clone(model)), mesh, dtype=model.dtype)
    batches = eval_batches(
        source,
        transform,
        batch_size=batch_size,
        num_workers=num_workers,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
    try:
        return evaluate(eval_step, params, statistics, batches, mesh)
    finally:
        batches.close()
