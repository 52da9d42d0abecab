"""Evaluation of a detector: every image once, then pycocotools' twelve numbers."""

import contextlib
import dataclasses
import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fastervit_jax.data.preprocessing import normalize_padded
from fastervit_jax.detection.dino import Inputs
from fastervit_jax.detection.postprocess import Detections, best_detections
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.parallel.mesh import batch_sharding, place_batch, replicated
from fastervit_jax.parallel.partition import GatheredModel

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""pycocotools' numbers in its order: precision and recall at sizes small, medium and large."""


def make_eval_step(model: PureModel, mesh: Mesh, *, dtype) -> Callable[..., Detections]:
    """Compiles, for each bucket, (parameters, statistics, batch) → detections on every host."""
    network: Any = GatheredModel(model, mesh)

    def step(params: Arrays, statistics: Arrays, batch: dict[str, jax.Array]):
        images = normalize_padded(batch["image"], batch["size"], dtype)
        outputs = network.infer(params, statistics, Inputs(images, batch["size"]))
        found = best_detections(outputs.logits[-1], outputs.boxes[-1], batch["original"])
        return found, batch["index"]

    return jax.jit(
        step,
        in_shardings=(None, None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def detect(
    step: Callable[..., Any],
    params: Arrays,
    statistics: Arrays,
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    images_done: Callable[[int], None],
) -> dict[int, Detections]:
    """Detections by index of the image, in NumPy arrays: the same on every host.

    Args:
        step: of `make_eval_step`.
        params: parameters by dotted name.
        statistics: batch-norm statistics by dotted name.
        batches: this host's batches (`batches.eval_batches`).
        mesh: the mesh.
        images_done: called with the number of images done.
    """
    found: dict[int, Detections] = {}
    for batch in batches:
        detections, indices = jax.device_get(step(params, statistics, place_batch(batch, mesh)))
        for row, index in enumerate(indices):
            if index >= 0:
                found[int(index)] = Detections(*(each[row] for each in detections))
        images_done(len(found))
    return found


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation:
    """The result of an evaluation.

    Attributes:
        numbers: pycocotools' twelve numbers; −1 where no object has such a size.
        per_class: AP by name of the class; −1 where it has no objects.
        precision: precision by IoU (.5 to .95), recall (0 to 1 by .01) and class, at all sizes,
            [10, 101, K]; −1 where there are no objects.
        images: number of images.
        detections: by index of the image.
    """

    numbers: dict[str, float]
    per_class: dict[str, float]
    precision: np.ndarray
    images: int
    detections: dict[int, Detections]

    def summary(self) -> dict[str, float]:
        """The twelve numbers, by name."""
        return dict(self.numbers)

    def sentence(self) -> str:
        """The main numbers for people."""
        return (
            f"AP {100 * self.numbers['AP']:.2f}, AP50 {100 * self.numbers['AP50']:.2f} on "
            f"{self.images} images"
        )


def check_pycocotools() -> None:
    """Raises ImportError where pycocotools is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise ImportError(
            "The evaluation of detectors needs pycocotools. Run pip install "
            "'fastervit-jax[detection]' or pip install pycocotools."
        )


def score(
    annotations: Path,
    image_ids: Sequence[Any],
    category_ids: Mapping[int, int],
    detections: Mapping[int, Detections],
) -> DetectionEvaluation:
    """pycocotools' evaluation of boxes.

    Args:
        annotations: the JSON file.
        image_ids: id of each image, by index.
        category_ids: id of each label; labels without one are left out.
        detections: by index of the image.

    Raises:
        ImportError: pycocotools is not installed.
    """
    check_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = [
        entry
        for index, found in detections.items()
        for entry in _entries(image_ids[index], category_ids, found)
    ]
    # pycocotools prints its progress and its table.
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        for annotation in truth.dataset["annotations"]:
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        # loadRes needs at least one result.
        placeholder = {"image_id": image_ids[0], "category_id": truth.getCatIds()[0]}
        placeholder |= {"bbox": [0.0, 0.0, 0.0, 0.0], "score": -1.0}
        evaluator = COCOeval(truth, truth.loadRes(results or [placeholder]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]  # all sizes, 100 detections
    names = {category["id"]: str(category["name"]) for category in truth.dataset["categories"]}
    per_class = {}
    for column, category in enumerate(evaluator.params.catIds):
        own = precision[:, :, column]
        per_class[names[category]] = float(own[own > -1].mean()) if (own > -1).any() else -1.0
    return DetectionEvaluation(
        numbers=dict(zip(NUMBERS, (float(value) for value in evaluator.stats), strict=True)),
        per_class=per_class,
        precision=precision,
        images=len(detections),
        detections=dict(detections),
    )


def _entries(image_id: Any, category_ids: Mapping[int, int], found: Detections) -> list[dict]:
    """Detections of an image as pycocotools wants them."""
    entries = []
    for value, label, box in zip(found.scores, found.labels, found.boxes, strict=True):
        if int(label) in category_ids:
            left, top, right, bottom = (float(each) for each in box)
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[int(label)],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(value),
                }
            )
    return entries
