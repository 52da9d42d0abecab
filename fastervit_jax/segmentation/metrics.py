"""Metrics of segmentation, all from one confusion matrix of pixels."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fastervit_jax.data.sources.masks import IGNORE

NUMBERS = ("mIoU", "mean_accuracy", "pixel_accuracy")


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts pixels by class: int64 [label, prediction]. Ignored pixels are left out.

    Args:
        labels: classes of the pixels, `IGNORE` where there is none.
        predicted: predicted classes, of the same shape.
        num_classes: number of classes.
    """
    labeled = labels != IGNORE
    pairs = labels[labeled].astype(np.int64) * num_classes + predicted[labeled]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """What a confusion matrix tells, as mmsegmentation's `IoUMetric`.

    Attributes:
        confusion: pixels, int64 [label, prediction].
        class_names: names of the classes.
    """

    confusion: np.ndarray
    class_names: Sequence[str]

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, [K]; NaN for a class that occurs nowhere."""
        both = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - both
        return _divided(both, union)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of the pixels of each class that are found, [K]; NaN for a class without any."""
        return _divided(np.diag(self.confusion), self.confusion.sum(axis=1))

    def numbers(self) -> dict[str, float]:
        """mIoU, mean accuracy and pixel accuracy, 0 to 1; 0 where no pixel is labeled.

        The means are over the classes that occur.
        """
        total = int(self.confusion.sum())
        if not total:
            return dict.fromkeys(NUMBERS, 0.0)
        return {
            "mIoU": float(np.nanmean(self.iou)),
            "mean_accuracy": float(np.nanmean(self.accuracy)),
            "pixel_accuracy": float(np.trace(self.confusion) / total),
        }

    def per_class(self) -> dict[str, float | None]:
        """IoU by the name of the class; None for a class that occurs nowhere."""
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(self.class_names, self.iou, strict=True)
        }


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
