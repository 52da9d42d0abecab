"""By class, by pair and by confidence, against counting one by one."""

import collections

import numpy as np
import pytest

from fastervit_jax.evaluation.evaluator import Evaluation, Predictions
from fastervit_jax.evaluation.metrics import calibration, class_accuracy, confused_pairs

CLASSES, IMAGES = 7, 400


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Random answers; some images do not count, and class 6 has none."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES - 1, IMAGES).astype(np.int32)
    top = np.stack([rng.permutation(CLASSES)[:5] for _ in range(IMAGES)])
    top[: IMAGES // 2, 0] = label[: IMAGES // 2]
    probability = -np.sort(-rng.dirichlet(np.ones(CLASSES) / 3, IMAGES), axis=1)[:, :5]
    return Predictions(
        index=np.arange(IMAGES),
        label=label,
        top=top,
        probability=probability.astype(np.float32),
        loss=rng.uniform(0, 3, IMAGES).astype(np.float32),
        hit=top == label[:, None],
        counted=rng.random(IMAGES) < 0.9,
    )


def rows(predictions):
    """(label, answer, probability, right) of each counted image, as plain numbers."""
    return [
        (int(label), int(top[0]), float(probability[0]), int(top[0]) == int(label))
        for label, top, probability, counted in zip(
            predictions.label,
            predictions.top,
            predictions.probability,
            predictions.counted,
            strict=True,
        )
        if counted
    ]


def test_numbers(predictions):
    evaluation = Evaluation.of(predictions)
    counted = rows(predictions)
    assert evaluation.images == IMAGES
    assert evaluation.top1 == sum(right for *_, right in counted) / len(counted)
    assert evaluation.loss == pytest.approx(sum(map(float, predictions.loss)) / IMAGES, rel=1e-12)


def test_class_accuracy(predictions):
    accuracy = class_accuracy(predictions, CLASSES)
    for number in range(CLASSES):
        right = [row[3] for row in rows(predictions) if row[0] == number]
        assert (accuracy.images[number], accuracy.correct[number]) == (len(right), sum(right))
    assert np.isnan(accuracy.share[6])
    assert accuracy.share[0] == accuracy.correct[0] / accuracy.images[0]


def test_confused_pairs(predictions):
    expected = collections.Counter(row[:2] for row in rows(predictions) if not row[3])
    pairs = confused_pairs(predictions)
    assert {(pair.label, pair.answer): pair.images for pair in pairs} == expected
    counts = [pair.images for pair in pairs]
    assert counts == sorted(counts, reverse=True)
    assert confused_pairs(predictions, limit=3) == pairs[:3]


def test_calibration(predictions):
    bins = 15
    result = calibration(predictions, bins=bins)
    counted = rows(predictions)
    error = 0.0
    for number in range(bins):
        inside = [row for row in counted if number / bins < row[2] <= (number + 1) / bins]
        assert result.images[number] == len(inside)
        if inside:
            accuracy = sum(row[3] for row in inside) / len(inside)
            confidence = sum(row[2] for row in inside) / len(inside)
            assert result.accuracy[number] == pytest.approx(accuracy)
            assert result.confidence[number] == pytest.approx(confidence)
            error += len(inside) / len(counted) * abs(accuracy - confidence)
    assert result.error == pytest.approx(error)
    assert error > 0.05


def test_calibration_of_an_honest_network_is_near_zero():
    rng = np.random.default_rng(1)
    sure = rng.uniform(0.2, 1, 200_000)
    right = rng.random(len(sure)) < sure
    honest = Predictions(
        index=np.arange(len(sure)),
        label=np.zeros(len(sure), int),
        top=np.where(right, 0, 1)[:, None],
        probability=sure[:, None],
        loss=-np.log(sure),
        hit=right[:, None],
        counted=np.ones(len(sure), bool),
    )
    assert calibration(honest).error < 0.005


def test_no_images():
    nothing = np.zeros((0, 5))
    empty = Predictions(
        *(nothing[:, 0],) * 2, nothing, nothing, nothing[:, 0], nothing > 0, nothing[:, 0] > 0
    )
    with pytest.raises(ValueError, match="No images to evaluate"):
        Evaluation.of(empty)
