"""Evaluating a module on a data set, from images to numbers."""

import jax
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.data import EvalTransform, Source, eval_batches
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.models import FasterViT
from fastervit_jax.models.functional import PureModel, arrays_of
from fastervit_jax.training.mesh import batch_shards, make_mesh, replicated


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
    params, statistics = (
        jax.device_put(arrays, replicated(mesh)) for arrays in arrays_of(model)
    )
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
