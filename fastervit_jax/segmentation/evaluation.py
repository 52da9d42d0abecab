"""Evaluation of a segmenter: every image once, one confusion matrix over all hosts."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image

from fastervit_jax.data.images import (
    AS_THE_REFERENCE,
    DamagedImageError,
    Decoding,
    describe_seen,
    take_seen,
)
from fastervit_jax.data.preprocessing import normalize_padded
from fastervit_jax.data.sources.masks import MaskedSource
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fastervit_jax.segmentation.inference import InferenceSettings, Scores, class_maps
from fastervit_jax.segmentation.metrics import SegmentationMetrics, confusion_matrix

_KEPT = 12


@dataclasses.dataclass(frozen=True)
class SegmentationEvaluation:
    """The result of an evaluation.

    Attributes:
        metrics: of all images of all hosts.
        images: number of images.
        accuracies: share of the labeled pixels that are right, of each image of this host with
            such pixels, by index.
        maps: predicted classes of the first images of this host, by index.
        decoding: how the images were decoded.
    """

    metrics: SegmentationMetrics
    images: int
    accuracies: dict[int, float]
    maps: dict[int, np.ndarray]
    decoding: Decoding

    def summary(self) -> dict[str, float]:
        """mIoU, mean accuracy and pixel accuracy, 0 to 1."""
        return self.metrics.numbers()

    def sentence(self) -> str:
        """The main numbers for people."""
        numbers = self.summary()
        return (
            f"mIoU {100 * numbers['mIoU']:.2f} %, pixel accuracy "
            f"{100 * numbers['pixel_accuracy']:.2f} % on {self.images} images"
        )


def local_scores(model: PureModel, mesh: Mesh, *, dtype) -> Callable[[Arrays, Arrays], Scores]:
    """Prepares the network for evaluation on the devices of this host.

    Hosts evaluate different images, of different sizes, independently of each other.

    Args:
        model: the network; its method `scores` is called.
        mesh: the mesh over which arrays are split that are given.
        dtype: type of the images.

    Returns:
        A function (parameters, statistics) → `Scores`. All hosts must call it. The number of
        windows must be a multiple of the number of local devices.
    """
    here = make_mesh(devices=jax.local_devices(backend=mesh.devices.flat[0].platform))
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))

    def run(params: Arrays, statistics: Arrays, windows: jax.Array, sizes: jax.Array) -> jax.Array:
        images = normalize_padded(windows, sizes, dtype)
        return model.infer(params, statistics, images, method="scores")

    batch = batch_sharding(here)
    step = jax.jit(run, in_shardings=(None, None, batch, batch), out_shardings=replicated(here))

    def prepare(params: Arrays, statistics: Arrays) -> Scores:
        arrays = jax.tree.map(lambda array: array.addressable_data(0), whole((params, statistics)))
        arrays = jax.device_put(arrays, replicated(here))

        def scores(windows: np.ndarray, sizes: np.ndarray) -> jax.Array:
            # To one device: the rest is small, and its programs are cheap to compile for one.
            return step(*arrays, windows, sizes).addressable_data(0)

        return scores

    return prepare


def evaluate(
    scores: Scores,
    source: MaskedSource,
    settings: InferenceSettings,
    *,
    batch_size: int,
    decoding: Decoding = AS_THE_REFERENCE,
    labels: np.ndarray | None = None,
    images_done: Callable[[int], None] = lambda images: None,
) -> SegmentationEvaluation:
    """Evaluates a network on a data set. Every host must call it.

    Args:
        scores: the network on this host's devices.
        source: the data set.
        settings: how class maps are made.
        batch_size: images and windows at a time, over all hosts.
        decoding: how images are decoded.
        labels: for each class of the network, that of the data set; None: they are the same.
        images_done: called with the number of images of this host that are done.

    Raises:
        DamagedImageError: an image or mask cannot be decoded; the message names it.
        ValueError: a mask does not fit its image or the classes.
    """
    classes = source.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    accuracies: dict[int, float] = {}
    maps: dict[int, np.ndarray] = {}
    local = max(1, batch_size // jax.process_count())
    devices = jax.local_device_count()
    windows = -(-local // devices) * devices
    own = range(jax.process_index(), len(source), jax.process_count())
    take_seen()
    done = 0
    for indices, examples in _read(source, own, local, decoding):
        found = class_maps(scores, [image for image, _ in examples], settings, batch_size=windows)
        for index, (_, mask), predicted in zip(indices, examples, found, strict=True):
            if labels is not None:
                predicted = labels[predicted]
            counts = confusion_matrix(mask, predicted, classes)
            confusion += counts
            if counts.sum():
                accuracies[index] = float(np.trace(counts) / counts.sum())
            if len(maps) < _KEPT:
                maps[index] = predicted
        done += len(indices)
        images_done(done)
    for sentence in describe_seen(take_seen(), decoding):
        if jax.process_index() == 0:
            print(sentence, flush=True)
    metrics = SegmentationMetrics(_sum_over_hosts(confusion), source.class_names)
    return SegmentationEvaluation(metrics, len(source), accuracies, maps, decoding)


def _read(
    source: MaskedSource, own: Sequence[int], size: int, decoding: Decoding
) -> Iterator[tuple[Sequence[int], list[tuple[Image.Image, np.ndarray]]]]:
    """Chunks of this host's images, decoded while the chunk before is used."""

    def read(index: int) -> tuple[Image.Image, np.ndarray]:
        example = source[index]
        try:
            return source.read(example, decoding)
        except DamagedImageError as error:
            raise DamagedImageError(
                f"Evaluation stopped: {example.key} cannot be used ({error}). Repair or remove the "
                "file."
            ) from error

    chunks = [own[start : start + size] for start in range(0, len(own), size)]
    with ThreadPoolExecutor() as pool:

        def submit(number: int) -> list[Any]:
            chosen = chunks[number] if number < len(chunks) else ()
            return [pool.submit(read, index) for index in chosen]

        ahead = submit(0)
        for number, chunk in enumerate(chunks):
            current, ahead = ahead, submit(number + 1)
            yield chunk, [future.result() for future in current]


def _sum_over_hosts(confusion: np.ndarray) -> np.ndarray:
    if jax.process_count() == 1:
        return confusion
    # JAX moves 32 bits: 64-bit counts travel as halves.
    halves = multihost_utils.process_allgather(np.ascontiguousarray(confusion).view(np.uint32))
    whole = np.ascontiguousarray(halves).view(np.int64)
    return whole.reshape(jax.process_count(), *confusion.shape).sum(axis=0)
