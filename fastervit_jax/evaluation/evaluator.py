"""Evaluating a network on a data set: every image once, on any mesh."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastervit_jax.models.functional import Arrays, PureModel
from fastervit_jax.training.device_augmentation import normalize
from fastervit_jax.training.mesh import batch_sharding, place_batch, replicated


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What the network answered, an entry an image, in the order of the data set.

    Attributes:
        index: the image's number in the data set, [N].
        label: its class, [N].
        top: the best classes (five, or all where there are fewer), best first, [N, k].
        probability: their probabilities, [N, k].
    """

    index: np.ndarray
    label: np.ndarray
    top: np.ndarray
    probability: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        images: how many images were counted.
        top1: share of images whose label is the best class.
        top5: share of images whose label is among the five best.
        loss: mean cross-entropy.
        predictions: of this host's images.
    """

    images: int
    top1: float
    top5: float
    loss: float
    predictions: Predictions

    def summary(self) -> dict[str, float]:
        """The numbers alone."""
        return {name: getattr(self, name) for name in ("images", "top1", "top5", "loss")}


EvalStep = Callable[[Arrays, Arrays, dict[str, jax.Array]], tuple[dict, dict]]


def make_eval_step(model: PureModel, mesh: Mesh, *, dtype=jnp.float32) -> EvalStep:
    """Compiles what is done with a batch of `image` (uint8), `label` and `mask`.

    Returns:
        A function of parameters, statistics and a batch: sums over the unmasked images (`images`,
        `top1`, `top5`, `loss`), and for each image `top` and `probability`.
    """

    def eval_step(params: Arrays, statistics: Arrays, batch: dict[str, jax.Array]):
        images = normalize(batch["image"], dtype=dtype)
        logits = model.infer(params, statistics, images)
        log_probabilities = jax.nn.log_softmax(logits)
        best, top = jax.lax.top_k(log_probabilities, min(5, logits.shape[-1]))
        hit = top == batch["label"][:, None]
        of_label = jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1)[:, 0]

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(batch["mask"], values, 0), dtype=jnp.float32)

        sums = {
            "images": total(jnp.ones_like(of_label)),
            "top1": total(hit[:, 0]),
            "top5": total(hit.any(axis=1)),
            "loss": total(-of_label),
        }
        return sums, {"top": top, "probability": jnp.exp(best)}

    everywhere, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(eval_step, out_shardings=(everywhere, split))


def evaluate(
    eval_step: EvalStep,
    params: Arrays,
    statistics: Arrays,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
) -> Evaluation:
    """Runs the network over batches of `fastervit_jax.data.eval_batches`.

    Args:
        eval_step: of `make_eval_step`.
        params: parameters by dotted name.
        statistics: batch-norm statistics by dotted name.
        batches: this host's share of the batches, padded and masked to one shape.
        mesh: the mesh the step was compiled for.

    Raises:
        ValueError: there are no images.
    """
    totals = dict.fromkeys(("images", "top1", "top5", "loss"), 0.0)
    kept: list[dict[str, np.ndarray]] = []
    for batch in batches:
        on_device = place_batch({k: batch[k] for k in ("image", "label", "mask")}, mesh)
        sums, answers = eval_step(params, statistics, on_device)
        mask = batch["mask"]
        rows = {name: _local_rows(array)[mask] for name, array in answers.items()}
        kept.append({**rows, "index": batch["index"][mask], "label": batch["label"][mask]})
        for name, value in jax.device_get(sums).items():
            totals[name] += float(value)
    if not totals["images"]:
        raise ValueError("There are no images to evaluate: the data set is empty.")
    joined = {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}
    count = totals["images"]
    return Evaluation(
        images=round(count),
        top1=totals["top1"] / count,
        top5=totals["top5"] / count,
        loss=totals["loss"] / count,
        predictions=Predictions(**joined),
    )


def _local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split along its first axis, each once."""
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])
