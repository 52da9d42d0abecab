"""Result of an evaluation, as named values and as files."""

import csv
import dataclasses
import io
import json
from typing import Any

import numpy as np
from etils import epath

from fastervit_jax.data import EvalTransform
from fastervit_jax.data.paths import is_remote
from fastervit_jax.evaluation.benchmarks import PUBLISHED, Published
from fastervit_jax.evaluation.dataset import EvaluationSet
from fastervit_jax.evaluation.evaluator import Evaluation
from fastervit_jax.evaluation.image_keys import image_keys
from fastervit_jax.evaluation.metrics import calibration, class_accuracy, confused_pairs

# Number of the most confused pairs in the details.
_PAIRS = 50


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation with its settings.

    Attributes:
        evaluation: the metrics and predictions.
        evaluation_set: the data set.
        transform: size and crop of the images.
        model: official name of the network.
        weights: path of the weights.
        dtype: dtype of the computation.
        deployed: whether the deployed network (`model.deploy()`) was evaluated.
    """

    evaluation: Evaluation
    evaluation_set: EvaluationSet
    transform: EvalTransform
    model: str
    weights: str
    dtype: str
    deployed: bool = False

    @property
    def published(self) -> Published | None:
        """Published accuracy of this network on this benchmark, or None."""
        return PUBLISHED.get(self.model, {}).get(self.evaluation_set.benchmark or "")

    def summary(self) -> dict[str, Any]:
        """Returns the metrics and the published accuracy. Accuracies are from 0 to 1."""
        evaluation = self.evaluation
        numbers: dict[str, Any] = dict(evaluation.summary())
        counted = int(evaluation.predictions.counted.sum())
        if counted != evaluation.images:
            numbers["counted"] = counted
        numbers["calibration_error"] = calibration(evaluation.predictions).error
        if self.published:
            numbers["published_top1"] = round(self.published.top1 / 100, 5)
            numbers["published_top5"] = round(self.published.top5 / 100, 5)
        return numbers

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the evaluation."""
        resolution = self.transform.resolution
        return {
            "model": self.model,
            "weights": self.weights,
            "dataset": self.evaluation_set.spec,
            "classes": self.evaluation_set.source.num_classes,
            "resolution": [resolution] * 2 if isinstance(resolution, int) else list(resolution),
            "crop_mode": self.transform.crop_mode,
            "crop_fraction": self.transform.crop_fraction,
            "dtype": self.dtype,
            "deployed": self.deployed,
        }

    def details(self) -> dict[str, Any]:
        """Returns metrics, settings, classes, confused pairs and calibration as JSON values."""
        predictions, names = self.evaluation.predictions, self.evaluation_set.source.class_names
        classes = class_accuracy(predictions, len(names))
        bins = calibration(predictions)
        return {
            **self.summary(),
            **self.settings(),
            "per_class": [
                {"class": name, "images": int(images), "correct": int(correct)}
                for name, images, correct in zip(
                    names, classes.images, classes.correct, strict=True
                )
            ],
            "confused_pairs": [
                {"label": names[pair.label], "answer": names[pair.answer], "images": pair.images}
                for pair in confused_pairs(predictions, limit=_PAIRS)
            ],
            "calibration": [
                {"images": int(images), "confidence": float(confidence), "accuracy": float(share)}
                for images, confidence, share in zip(
                    bins.images, bins.confidence, bins.accuracy, strict=True
                )
                if images
            ],
        }

    def lines(self) -> list[str]:
        """Returns the metrics as lines for the user."""
        evaluation = self.evaluation
        lines = [f"{self.model} on {self.evaluation_set.title}: {evaluation.images} images"]
        for title, share, published in (
            ("top-1", evaluation.top1, self.published and self.published.top1),
            ("top-5", evaluation.top5, self.published and self.published.top5),
        ):
            beside = ""
            if published:
                beside = f"  (published {published:.1f}, difference {100 * share - published:+.2f})"
            lines.append(f"{title} {share:8.3%}{beside}")
        lines.append(f"loss  {evaluation.loss:.5f}")
        return lines


def details_json(result: Result) -> str:
    """Returns `Result.details` as JSON text."""
    return json.dumps(result.details(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def predictions_csv(result: Result) -> str:
    """Returns CSV with one line per image: file, label, loss, best classes, probabilities.

    Spreadsheets run text that begins like a formula. Such names get an apostrophe in front
    (`_without_formula`).
    """
    predictions, source = result.evaluation.predictions, result.evaluation_set.source
    names = np.array([_without_formula(name) for name in source.class_names], dtype=object)
    places = range(1, predictions.top.shape[1] + 1)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = (name for place in places for name in (f"top{place}", f"probability{place}"))
    table.writerow(["file", "label", "loss", *columns])
    for row, key in enumerate(image_keys(source, predictions.index)):
        answers = zip(names[predictions.top[row]], predictions.probability[row], strict=True)
        table.writerow(
            [
                _without_formula(key),
                names[predictions.label[row]],
                f"{predictions.loss[row]:.6f}",
                *(value for name, share in answers for value in (name, f"{share:.6f}")),
            ]
        )
    return text.getvalue()


def _without_formula(name: str) -> str:
    """Puts an apostrophe before a name that a spreadsheet would run, but not before a number."""
    if not name.startswith(("=", "+", "-", "@", "\t", "\r")):
        return name
    try:
        float(name)
    except ValueError:
        return f"'{name}"
    return name


def check_destination(flag: str, path: epath.PathLike | None) -> None:
    """Raises ValueError if a file cannot be written. Call it before a long evaluation."""
    if path is None:
        return
    path = epath.Path(path)
    if path.is_dir():
        raise ValueError(f"Invalid {flag}={path}: expected a file, got a directory.")
    if not is_remote(path) and not path.parent.is_dir():
        raise ValueError(f"Invalid {flag}={path}: the directory {path.parent} does not exist.")
