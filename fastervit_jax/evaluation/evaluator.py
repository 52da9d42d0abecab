"""Evaluating a network on a data set: every image once, on any mesh and any number of hosts.

The device answers (best classes, their probabilities, the loss of every image); the numbers are
made of the answers on the host, in float64. So they do not depend on how a batch was cut up.
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

# Batches whose answers are awaited while the device works on: fetching the answers of the newest
# would leave it idle until the next one is sent.
_IN_FLIGHT = 3


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What the network answered, an entry an image, in the order of the data set.

    Attributes:
        index: the image's number in the data set, [N].
        label: its class, [N].
        top: the best classes (five, or all where there are fewer), best first, [N, k].
        probability: their probabilities, [N, k].
        loss: cross-entropy against the label, [N].
        hit: which of the best classes are right, [N, k].
        counted: which images count towards accuracy, [N]; all, except in ImageNet-ReaL, where some
            images have no right answer.
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
        images: how many images were evaluated.
        top1: share of counted images whose best class is right.
        top5: share of counted images with a right class among the five best.
        loss: mean cross-entropy over all images.
        predictions: of all images, on every host.
    """

    images: int
    top1: float
    top5: float
    loss: float
    predictions: Predictions

    @classmethod
    def of(cls, predictions: Predictions) -> "Evaluation":
        """The numbers that follow from predictions.

        Raises:
            ValueError: there are none, or none that count.
        """
        hits = predictions.hit[predictions.counted]
        if not len(hits):
            raise ValueError("There are no images to evaluate: the data set is empty.")
        return cls(
            images=len(predictions.index),
            top1=float(hits[:, 0].mean()),
            top5=float(hits.any(axis=1).mean()),
            loss=float(predictions.loss.mean(dtype=np.float64)),
            predictions=predictions,
        )

    def summary(self) -> dict[str, float]:
        """The numbers alone."""
        return {name: getattr(self, name) for name in ("images", "top1", "top5", "loss")}

    def sentence(self) -> str:
        """The numbers for people."""
        return f"{self.images} held-out images, top-1 {self.top1:.2%}, loss {self.loss:.4f}"


class InferenceModel(Protocol):
    """A network as a function of its arrays, such as `models.pure_model.PureModel`."""

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """Logits of normalised images."""
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
    """Compiles what is done with a batch of `image` (uint8 [N, H, W, 3]) and `label` (int [N]).

    float32 is computed in full: accelerators would multiply in fewer bits unless told not to.

    Args:
        model: the network.
        mesh: where its batches lie.
        dtype: type of the images it is given.
        logits: the logits that answers are taken over, and that labels count in; None means all.
        mean: of each channel, for images from 0 to 1.
        std: standard deviation of each channel.

    Returns:
        A function of parameters, statistics and a batch that gives for every image the best classes
        (`top` [N, k]), their `probability` [N, k] and its `loss` [N].
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
    """Runs the network over batches of `fastervit_jax.data.eval_batches`.

    Every host of the mesh must call this, with its own share of the batches.

    Args:
        eval_step: of `make_eval_step`.
        params: parameters by dotted name.
        statistics: batch-norm statistics by dotted name.
        batches: this host's share of the batches, padded and masked to one shape.
        mesh: the mesh the step was compiled for.
        images_done: called with the number of this host's images whose answers came in.

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
        raise ValueError("There are no images to evaluate: the data set is empty.")
    rows = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return Evaluation.of(_predictions(_of_all_hosts(rows)))


def _of_all_hosts(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of every host. All have equally many, since padding is still among them."""
    if jax.process_count() == 1:
        return rows
    gathered = multihost_utils.process_allgather(rows, tiled=True)
    return {name: np.asarray(array) for name, array in gathered.items()}


def _predictions(rows: dict[str, np.ndarray]) -> Predictions:
    """Predictions of the rows that are images, in the order of the data set."""
    rows = {name: array[rows["mask"]] for name, array in rows.items()}
    order = np.argsort(rows["index"])
    rows = {name: array[order] for name, array in rows.items() if name != "mask"}
    hit = rows["top"] == rows["label"][:, None]
    return Predictions(**rows, hit=hit, counted=np.ones(len(hit), bool))


def _local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split along its first axis, each once."""
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])
