"""The mistakes of a detector: objects that it misses, and false alarms."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fastervit_jax.data.sources.coco import CocoSource
from fastervit_jax.detection.postprocess import Detections

LEAST_IOU = 0.5


class Mistake(NamedTuple):
    """An object or a detection without a partner.

    Attributes:
        image: index of the image.
        label: its class, in the classes of the data set.
        box: its corner box, in pixels.
        score: of the detection; 0 for a missed object.
    """

    image: int
    label: int
    box: np.ndarray
    score: float


def mistakes(
    source: CocoSource,
    detections: Mapping[int, Detections],
    label_of: Mapping[int, int],
    *,
    least_score: float,
) -> tuple[list[Mistake], list[Mistake]]:
    """Missed objects, the largest first, and false alarms, the surest first.

    Detections from the surest on take the object of their class with the largest IoU, if that is
    0.5 or more and the object is free.

    Args:
        source: the data set.
        detections: by index of the image.
        label_of: the model's class → that of the data set.
        least_score: detections with a lower score are left out.
    """
    missed, alarms = [], []
    for index, found in detections.items():
        example = source[index]
        free = np.ones(len(example.labels), bool)
        for score, label, box in zip(found.scores, found.labels, found.boxes, strict=True):
            if score < least_score:
                break
            own = label_of.get(int(label))
            if own is None:
                continue
            overlaps = np.where(free & (example.labels == own), iou(box, example.boxes), 0)
            if len(overlaps) and overlaps.max() >= LEAST_IOU:
                free[overlaps.argmax()] = False
            else:
                alarms.append(Mistake(index, own, np.asarray(box), float(score)))
        missed += [
            Mistake(index, int(example.labels[row]), example.boxes[row], 0.0)
            for row in np.flatnonzero(free)
        ]
    missed.sort(key=lambda each: -float(np.prod(each.box[2:] - each.box[:2])))
    alarms.sort(key=lambda each: -each.score)
    return missed, alarms


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a corner box with others [n, 4]: [n]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + np.prod(box[2:] - box[:2])
    return overlap / np.maximum(areas - overlap, 1e-9)
