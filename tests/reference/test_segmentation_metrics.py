"""The numbers of segmentation against torchmetrics', from the same masks."""

import numpy as np
import pytest

from fastervit_jax.data.sources.masks import IGNORE
from fastervit_jax.segmentation.metrics import SegmentationMetrics, confusion_matrix

torch = pytest.importorskip("torch")
classification = pytest.importorskip("torchmetrics.classification")

CLASSES = 7


@pytest.mark.slow
def test_numbers_equal_torchmetrics_on_300_masks():
    rng = np.random.default_rng(0)
    options = dict(num_classes=CLASSES, ignore_index=IGNORE)
    theirs = {
        "iou": classification.MulticlassJaccardIndex(average="none", **options),
        "mIoU": classification.MulticlassJaccardIndex(average="macro", **options),
        "accuracy": classification.MulticlassAccuracy(average="none", **options),
        "mean_accuracy": classification.MulticlassAccuracy(average="macro", **options),
        "pixel_accuracy": classification.MulticlassAccuracy(average="micro", **options),
    }
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    for _ in range(300):
        size = rng.integers(5, 40, 2)
        mask = rng.integers(0, CLASSES, size).astype(np.uint8)
        predicted = np.where(rng.random(size) < 0.6, mask, rng.integers(0, CLASSES, size))
        mask[rng.random(size) < 0.1] = IGNORE
        confusion += confusion_matrix(mask, predicted, CLASSES)
        for metric in theirs.values():
            metric.update(torch.tensor(predicted), torch.tensor(mask.astype(np.int64)))
    found = {name: metric.compute().numpy() for name, metric in theirs.items()}
    ours = SegmentationMetrics(confusion, [f"class {k}" for k in range(CLASSES)])
    # Theirs are float32.
    np.testing.assert_allclose(ours.iou, found["iou"], rtol=1e-6)
    np.testing.assert_allclose(ours.accuracy, found["accuracy"], rtol=1e-6)
    for name, value in ours.numbers().items():
        np.testing.assert_allclose(value, found[name], rtol=1e-6, err_msg=name)
