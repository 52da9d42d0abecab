"""Evaluate a network on a data set: every image once, on any mesh and any number of hosts.

The device computes the best classes, their probabilities and the loss of every image. The host
computes the metrics from them in float64. The metrics therefore do not depend on the batch size.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fastervit_jax.data import prefetch_to_device
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalize
from fastervit_jax.models.pure_model import Arrays
from fastervit_jax.parallel.mesh import batch_sharding, place_batch

# Number of batches whose results are fetched later. If the results of the newest batch were fetched
# at once, the device would be idle until it gets the next batch.
_IN_FLIGHT = 3


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a network, one entry per image, in the order of the data set.

    Attributes:
        index: index of the image in the data set, `[N]`.
        label: class of the image, `[N]`.
        top: the k best classes, best first, `[N, k]`. k is 5, or the number of classes if smaller.
        probability: probabilities of the best classes, `[N, k]`.
        loss: cross-entropy of the label, `[N]`.
        hit: whether each of the best classes is correct, `[N, k]`.
        counted: whether the image counts for the accuracy, `[N]`. Only in ImageNet-ReaL, some
            images do not count, because they have no correct class.
    """

    index: np.ndarray
    label: np.ndarray
    top: np.ndarray
    probability: np.ndarray
    loss: np.ndarray
    hit: np.ndarray
    counted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        images: number of evaluated images.
        top1: share of counted images whose best class is correct, 0 to 1.
        top5: share of counted images with a correct class among the best five, 0 to 1.
        loss: mean cross-entropy over all images.
        predictions: predictions for all images, the same on every host.
    """

    images: int
    top1: float
    top5: float
    loss: float
    predictions: Predictions

    @classmethod
    def of(cls, predictions: Predictions) -> "Evaluation":
        """Computes the metrics from predictions.

        Raises:
            ValueError: there are no images, or no image counts.
        """
        hits = predictions.hit[predictions.counted]
        if not len(hits):
            raise ValueError("No images to evaluate: the data set is empty.")
        return cls(
            images=len(predictions.index),
            top1=float(hits[:, 0].mean()),
            top5=float(hits.any(axis=1).mean()),
            loss=float(predictions.loss.mean(dtype=np.float64)),
            predictions=predictions,
        )

    def summary(self) -> dict[str, float]:
        """Returns the metrics without the predictions."""
        return {name: getattr(self, name) for name in ("images", "top1", "top5", "loss")}

    def sentence(self) -> str:
        """Returns the metrics as text for the user."""
        return f"{self.images} held-out images, top-1 {self.top1:.2%}, loss {self.loss:.4f}"


class InferenceModel(Protocol):
    """A network as a function of its arrays, for example `models.pure_model.PureModel`."""

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """Returns the logits of normalized images."""
        ...


EvalStep = Callable[[Arrays, Arrays, dict[str, jax.Array]], dict[str, jax.Array]]


def make_eval_step(
    model: InferenceModel,
    mesh: Mesh,
    *,
    dtype=jnp.float32,
    logits: Sequence[int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EvalStep:
    """Returns the jitted evaluation step.

    With float32, matrix products use the full precision. By default, accelerators would use fewer
    bits.

    Args:
        model: the network.
        mesh: the mesh over which batches are sharded.
        dtype: dtype of the normalized images.
        logits: indices of the logits to use. Labels and predictions are indices into them. None
            means all logits.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.

    Returns:
        A function of parameters, statistics and a batch with `image` (uint8 `[N, H, W, 3]`) and
        `label` (int `[N]`). It returns the best classes `top` `[N, k]`, their `probability`
        `[N, k]` and the `loss` `[N]`.
    """
    exact = jnp.dtype(dtype) == jnp.float32
    kept = None if logits is None else np.asarray(logits, np.int32)

    def eval_step(params: Arrays, statistics: Arrays, batch: dict[str, jax.Array]):
        precision = jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
        with precision:
            images = normalize(batch["image"], mean, std, dtype=dtype)
            scores = model.infer(params, statistics, images)
        if kept is not None:
            scores = scores[:, kept]
        log_probabilities = jax.nn.log_softmax(scores)
        best, top = jax.lax.top_k(log_probabilities, min(5, scores.shape[-1]))
        of_label = jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1)[:, 0]
        return {"top": top, "probability": jnp.exp(best), "loss": -of_label}

    return jax.jit(eval_step, out_shardings=batch_sharding(mesh))


def evaluate(
    eval_step: EvalStep,
    params: Arrays,
    statistics: Arrays,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    images_done: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluates a network on the batches of `fastervit_jax.data.eval_batches`.

    Every host of the mesh must call this function with its own part of the batches.

    Args:
        eval_step: result of `make_eval_step`.
        params: parameters by dotted name.
        statistics: batch norm statistics by dotted name.
        batches: this host's part of the batches, padded to one shape.
        mesh: mesh of `eval_step`.
        images_done: called with the number of this host's images that were evaluated.

    Raises:
        ValueError: there are no images.
    """

    def put(batch: Mapping[str, np.ndarray]):
        on_host = {name: np.asarray(batch[name]) for name in ("index", "label", "mask")}
        return on_host, place_batch({name: batch[name] for name in ("image", "label")}, mesh)

    kept: list[dict[str, np.ndarray]] = []

    def keep(on_host: dict[str, np.ndarray], answers: dict[str, jax.Array]) -> None:
        kept.append({**on_host, **{name: _local_rows(answers[name]) for name in answers}})
        if images_done is not None:
            images_done(int(on_host["mask"].sum()))

    in_flight: deque[tuple[dict[str, np.ndarray], dict[str, jax.Array]]] = deque()
    for on_host, on_device in prefetch_to_device(batches, put):
        answers = eval_step(params, statistics, on_device)
        for array in answers.values():
            array.copy_to_host_async()
        in_flight.append((on_host, answers))
        if len(in_flight) > _IN_FLIGHT:
            keep(*in_flight.popleft())
    while in_flight:
        keep(*in_flight.popleft())
    if not kept:
        raise ValueError("No images to evaluate: the data set is empty.")
    rows = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return Evaluation.of(_predictions(_of_all_hosts(rows)))


def _of_all_hosts(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gathers the rows of all hosts. Padding makes their number equal on every host."""
    if jax.process_count() == 1:
        return rows
    gathered = multihost_utils.process_allgather(rows, tiled=True)
    return {name: np.asarray(array) for name, array in gathered.items()}


def _predictions(rows: dict[str, np.ndarray]) -> Predictions:
    """Drops padding and sorts the rows by the order of the data set."""
    rows = {name: array[rows["mask"]] for name, array in rows.items()}
    order = np.argsort(rows["index"])
    rows = {name: array[order] for name, array in rows.items() if name != "mask"}
    hit = rows["top"] == rows["label"][:, None]
    return Predictions(**rows, hit=hit, counted=np.ones(len(hit), bool))


def _local_rows(array: jax.Array) -> np.ndarray:
    """Returns this host's rows of an array that is sharded along its first axis."""
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])
