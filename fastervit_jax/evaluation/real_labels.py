"""ImageNet-ReaL: all correct classes of ImageNet's validation images.

From Beyer et al., "Are we done with ImageNet?" (2020). A prediction is correct if it is one of the
image's labels. Images without labels (3,163 of 50,000) do not count.
"""

import dataclasses
import json
import re
from collections.abc import Sequence

import numpy as np
from etils import epath

from fastervit_jax.data import Source
from fastervit_jax.data.sources.tfds import TfdsSource
from fastervit_jax.evaluation.evaluator import Evaluation, Predictions
from fastervit_jax.evaluation.image_keys import image_keys

_VALIDATION_IMAGES = 50_000
_FILE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


class RealTfdsSource(TfdsSource):
    """The TFDS data set `imagenet2012_real`. The label of an example is ImageNet's label."""

    def _feature_names(self, info) -> tuple[str, str]:
        if not {"image", "original_label", "real_label"} <= set(info.features):
            raise ValueError(
                f"tfds:{self._name} has no ReaL labels. Use tfds:imagenet2012_real@validation, or "
                "pass --real_labels=real.json."
            )
        return "image", "original_label"

    def real_labels(self, index: int) -> list[int]:
        """Returns the correct classes of an image. The list may be empty."""
        return [int(label) for label in self._records[index]["real_label"]]


@dataclasses.dataclass(frozen=True)
class RealLabels:
    """The correct classes of the images of a data set.

    Attributes:
        source: the images. If `by_number` is None, it also contains the ReaL labels.
        by_number: labels by the number in the name of a validation file, counted from 0.
        answer: for each class of ImageNet-1K, its index among the classes that can be predicted, or
            -1.
    """

    source: Source
    by_number: Sequence[Sequence[int]] | None
    answer: tuple[int, ...]

    def of(self, indices: np.ndarray) -> list[set[int]]:
        """Returns the correct classes of the images with these indices."""
        labels: list[Sequence[int]]
        if self.by_number is not None:
            labels = [self.by_number[_number(key)] for key in image_keys(self.source, indices)]
        else:
            source = self.source
            assert isinstance(source, RealTfdsSource), "open_real_labels checks the source"
            labels = [source.real_labels(int(index)) for index in indices]
        return [{self.answer[label] for label in each} for each in labels]


def open_real_set(spec: str, *, data_dir: str | None = None) -> RealTfdsSource:
    """Opens the TFDS data set `imagenet2012_real`."""
    return RealTfdsSource(spec, data_dir=data_dir)


def open_real_labels(source: Source, file: str | None, answer: tuple[int, ...]) -> RealLabels:
    """Opens ReaL labels from the data set, or from `real.json` of the paper's authors.

    Raises:
        ValueError: the file is needed and missing, or it does not contain ReaL labels.
    """
    if isinstance(source, RealTfdsSource):
        return RealLabels(source, None, answer)
    if file is None:
        raise ValueError(
            "ImageNet-ReaL needs its labels if the images are not from TFDS's imagenet2012_real. "
            "Pass --real_labels=real.json, the file from "
            "github.com/google-research/reassessed-imagenet."
        )
    try:
        by_number = json.loads(epath.Path(file).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"Invalid --real_labels={file}: cannot be read ({error}).") from None
    if not isinstance(by_number, list) or len(by_number) != _VALIDATION_IMAGES:
        raise ValueError(
            f"Invalid --real_labels={file}: expected a list of labels of ImageNet's 50,000 images."
        )
    return RealLabels(source, by_number, answer)


def judged_by(real_labels: RealLabels, evaluation: Evaluation) -> Evaluation:
    """Recomputes the accuracy with ReaL labels. The loss stays that of ImageNet's label."""
    predictions = evaluation.predictions
    answers = real_labels.of(predictions.index)
    hit = [
        [place in right for place in top]
        for top, right in zip(predictions.top.tolist(), answers, strict=True)
    ]
    counted = np.array([bool(right) for right in answers])
    return Evaluation.of(
        Predictions(**{**vars(predictions), "hit": np.array(hit), "counted": counted})
    )


def _number(key: str) -> int:
    found = _FILE_NAME.search(key)
    if not found or not 1 <= int(found[1]) <= _VALIDATION_IMAGES:
        raise ValueError(
            f"{key} has no ReaL labels. Expected the file names of ImageNet, "
            "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG."
        )
    return int(found[1]) - 1
