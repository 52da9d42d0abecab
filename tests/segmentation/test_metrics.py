"""One confusion matrix against scikit-learn's figures."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from fastervit_jax.data.sources.masks import IGNORE
from fastervit_jax.segmentation.metrics import SegmentationMetrics, confusion_matrix

CLASSES = 7


def test_numbers_equal_scikit_learns_on_300_masks():
    rng = np.random.default_rng(0)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    labels, predictions = [], []
    for _ in range(300):
        size = rng.integers(5, 40, 2)
        mask = rng.integers(0, CLASSES - 1, size).astype(np.uint8)  # the last class never occurs
        predicted = np.where(rng.random(size) < 0.6, mask, rng.integers(0, CLASSES - 1, size))
        mask[rng.random(size) < 0.1] = IGNORE
        confusion += confusion_matrix(mask, predicted, CLASSES)
        kept = mask != IGNORE
        labels.append(mask[kept])
        predictions.append(predicted[kept])
    truth, found = np.concatenate(labels), np.concatenate(predictions)
    metrics = SegmentationMetrics(confusion, [f"class {k}" for k in range(CLASSES)])
    present = list(range(CLASSES - 1))
    iou = jaccard_score(truth, found, labels=present, average=None)
    recall = recall_score(truth, found, labels=present, average=None)
    np.testing.assert_allclose(metrics.iou[:-1], iou, rtol=1e-12)
    np.testing.assert_allclose(metrics.accuracy[:-1], recall, rtol=1e-12)
    assert np.isnan(metrics.iou[-1]) and np.isnan(metrics.accuracy[-1])
    numbers = metrics.numbers()
    assert numbers["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert numbers["mean_accuracy"] == pytest.approx(recall.mean(), rel=1e-12)
    assert numbers["pixel_accuracy"] == pytest.approx(accuracy_score(truth, found), rel=1e-12)
    assert metrics.per_class()["class 6"] is None


def test_masks_without_labels_give_zeros_not_nan():
    mask = np.full((4, 4), IGNORE, np.uint8)
    metrics = SegmentationMetrics(confusion_matrix(mask, np.zeros((4, 4), int), 2), ["a", "b"])
    assert metrics.numbers() == {"mIoU": 0.0, "mean_accuracy": 0.0, "pixel_accuracy": 0.0}
