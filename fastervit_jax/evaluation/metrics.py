"""What predictions say beyond two numbers: by class, by confused pair, by confidence."""

import dataclasses
from typing import NamedTuple

import numpy as np

from fastervit_jax.evaluation.evaluator import Predictions


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of every class, an entry a class.

    Attributes:
        images: counted images of the class, [C].
        correct: how many of them were answered right, [C].
    """

    images: np.ndarray
    correct: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of each class's images that was answered right; NaN for a class without any."""
        return np.where(self.images, self.correct / np.maximum(self.images, 1), np.nan)


def class_accuracy(predictions: Predictions, num_classes: int) -> ClassAccuracy:
    """Counts images and right answers by label."""
    label, right = predictions.label[predictions.counted], _right(predictions)
    return ClassAccuracy(
        images=np.bincount(label, minlength=num_classes),
        correct=np.bincount(label[right], minlength=num_classes),
    )


class ConfusedPair(NamedTuple):
    """A class taken for another.

    Attributes:
        label: the class.
        answer: what the network said.
        images: how often.
    """

    label: int
    answer: int
    images: int


def confused_pairs(predictions: Predictions, *, limit: int | None = None) -> list[ConfusedPair]:
    """Pairs of classes that were taken for one another, the most frequent first."""
    wrong = ~_right(predictions)
    label = predictions.label[predictions.counted][wrong]
    answer = predictions.top[predictions.counted, 0][wrong]
    pairs, counts = np.unique(np.stack([label, answer]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [ConfusedPair(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether answers given with probability p are right in a share p of the cases.

    Attributes:
        error: expected calibration error, from 0 to 1: the difference of mean probability and
            accuracy in each bin, weighted by its images.
        images: images in each bin of probability, [bins].
        confidence: their mean probability, [bins]; NaN in an empty bin.
        accuracy: share of them answered right, [bins]; NaN in an empty bin.
    """

    error: float
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(predictions: Predictions, *, bins: int = 15) -> Calibration:
    """Expected calibration error over equal bins of the best class's probability.

    Bins are closed above, as in Guo et al., "On Calibration of Modern Neural Networks" (2017),
    section 2, whose 15 bins are the usual number.
    """
    probability = predictions.probability[predictions.counted, 0].astype(np.float64)
    right = _right(predictions)
    place = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    some = np.where(images, images, np.nan)
    confidence = np.bincount(place, weights=probability, minlength=bins) / some
    accuracy = np.bincount(place, weights=right, minlength=bins) / some
    error = np.nansum(images * np.abs(confidence - accuracy)) / len(right)
    return Calibration(float(error), images, confidence, accuracy)


def _right(predictions: Predictions) -> np.ndarray:
    """Which counted images were answered right, [counted images]."""
    return predictions.hit[predictions.counted, 0]
