"""Metrics of predictions: accuracy by class, confused classes, calibration."""

import dataclasses
from typing import NamedTuple

import numpy as np

from fastervit_jax.evaluation.evaluator import Predictions


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of every class.

    Attributes:
        images: number of counted images per class, `[C]`.
        correct: number of correct predictions per class, `[C]`.
    """

    images: np.ndarray
    correct: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Accuracy per class, 0 to 1; NaN for a class without images."""
        return np.where(self.images, self.correct / np.maximum(self.images, 1), np.nan)


def class_accuracy(predictions: Predictions, num_classes: int) -> ClassAccuracy:
    """Counts images and correct predictions per class."""
    label, right = predictions.label[predictions.counted], _right(predictions)
    return ClassAccuracy(
        images=np.bincount(label, minlength=num_classes),
        correct=np.bincount(label[right], minlength=num_classes),
    )


class ConfusedPair(NamedTuple):
    """A class that was predicted as another class.

    Attributes:
        label: the correct class.
        answer: the predicted class.
        images: number of images.
    """

    label: int
    answer: int
    images: int


def confused_pairs(predictions: Predictions, *, limit: int | None = None) -> list[ConfusedPair]:
    """Returns the pairs of confused classes, the most frequent pair first."""
    wrong = ~_right(predictions)
    label = predictions.label[predictions.counted][wrong]
    answer = predictions.top[predictions.counted, 0][wrong]
    pairs, counts = np.unique(np.stack([label, answer]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return [ConfusedPair(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration: how well the probability of a prediction matches its accuracy.

    Attributes:
        error: expected calibration error, from 0 to 1. It is the mean of |mean probability −
            accuracy| over the bins, weighted by their number of images.
        images: number of images per bin of probability, `[bins]`.
        confidence: mean probability per bin, `[bins]`; NaN in an empty bin.
        accuracy: accuracy per bin, `[bins]`; NaN in an empty bin.
    """

    error: float
    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(predictions: Predictions, *, bins: int = 15) -> Calibration:
    """Computes the calibration over equal bins of the probability of the best class.

    Follows Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2. A bin includes
    its upper limit. The default of 15 bins is the usual number.
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
    """Returns whether each counted image was predicted correctly, `[counted images]`."""
    return predictions.hit[predictions.counted, 0]
