"""ImageNet-ReaL: every right answer for ImageNet's validation images.

Beyer et al., "Are we done with ImageNet?" (2020). An answer is right if it is among an image's
labels; images without any (3,163 of the 50,000) do not count.
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
    """The TFDS set `imagenet2012_real`; an example's label is ImageNet's own."""

    def _feature_names(self, info) -> tuple[str, str]:
        if not {"image", "original_label", "real_label"} <= set(info.features):
            raise ValueError(
                f"tfds:{self._name} holds no ReaL labels: use tfds:imagenet2012_real@validation, "
                f"or give --real_labels=real.json."
            )
        return "image", "original_label"

    def real_labels(self, index: int) -> list[int]:
        """Right answers of an image; there may be none."""
        return [int(label) for label in self._records[index]["real_label"]]


@dataclasses.dataclass(frozen=True)
class RealLabels:
    """Right answers, as places among the classes that can be answered.

    Attributes:
        source: the images, and where `by_number` is None their labels.
        by_number: labels by the number in a validation file's name, counted from 0.
        answer: for each of ImageNet-1K's classes its place among the answers, -1 where it has none.
    """

    source: Source
    by_number: Sequence[Sequence[int]] | None
    answer: tuple[int, ...]

    def of(self, indices: np.ndarray) -> list[set[int]]:
        """Right answers of images of the data set."""
        if self.by_number is None:
            labels = [self.source.real_labels(int(index)) for index in indices]  # type: ignore[attr-defined]
        else:
            labels = [self.by_number[_number(key)] for key in image_keys(self.source, indices)]
        return [{self.answer[label] for label in each} for each in labels]


def open_real_set(spec: str, *, data_dir: str | None = None) -> RealTfdsSource:
    """Opens `imagenet2012_real` as TFDS prepared it."""
    return RealTfdsSource(spec, data_dir=data_dir)


def open_real_labels(source: Source, file: str | None, answer: tuple[int, ...]) -> RealLabels:
    """Right answers from a set that holds them, or from `real.json` of the paper's authors.

    Raises:
        ValueError: there is no file where one is needed, or it is not ReaL's.
    """
    if isinstance(source, RealTfdsSource):
        return RealLabels(source, None, answer)
    if file is None:
        raise ValueError(
            "ImageNet-ReaL over other images than TFDS's imagenet2012_real needs its labels: "
            "--real_labels=real.json of github.com/google-research/reassessed-imagenet."
        )
    try:
        by_number = json.loads(epath.Path(file).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--real_labels: {file} cannot be read ({error}).") from None
    if not isinstance(by_number, list) or len(by_number) != _VALIDATION_IMAGES:
        raise ValueError(f"--real_labels: {file} is no list of labels of ImageNet's 50,000 images.")
    return RealLabels(source, by_number, answer)


def judged_by(real_labels: RealLabels, evaluation: Evaluation) -> Evaluation:
    """The evaluation with accuracy by ReaL labels; the loss stays that of ImageNet's own label."""
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
            f"{key} has no ReaL labels: they are known by ImageNet's own file names, "
            f"ILSVRC2012_val_00000001.JPEG to _00050000.JPEG."
        )
    return int(found[1]) - 1
