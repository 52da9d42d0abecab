"""Classifies, detects or segments: fastervit predict IMAGE… --model=NAME --weights=PATH.

IMAGE is a file, or a folder of them. Prints a table; --json=FILE and --picture=FILE write the
answers as JSON, and under the images. A file that cannot be read is named, and the rest goes on.

The function behind it is `fastervit_jax.predict`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

from fastervit_jax.commands.flags import (
    define_decoding_flags,
    define_scales_flag,
    define_weights_flags,
)
from fastervit_jax.data.images import Decoding, decode_rgb
from fastervit_jax.models import family_of
from fastervit_jax.prediction import ClassMap, DetectedObjects, Prediction, predict

_MOST_DRAWN = 48


def table(predictions: Sequence[Prediction]) -> str:
    """Lines of image, probability and class, for a terminal."""
    if not predictions:
        return ""
    width = max(len(one.image) for one in predictions)
    lines = []
    for one in predictions:
        for rank, (name, probability) in enumerate(zip(one.names, one.probabilities, strict=True)):
            image = one.image if rank == 0 else ""
            lines.append(f"{image:{width}}  {probability:6.1%}  {name}")
    return "\n".join(lines)


def table_of_objects(predictions: Sequence[DetectedObjects]) -> str:
    """Lines of image, score, box and class, for a terminal."""
    width = max((len(one.image) for one in predictions), default=0)
    lines = []
    for one in predictions:
        if not one.names:
            lines.append(f"{one.image:{width}}  no objects")
        for rank, (name, score, box) in enumerate(
            zip(one.names, one.scores, one.boxes, strict=True)
        ):
            image = one.image if rank == 0 else ""
            corners = " ".join(f"{side:6.0f}" for side in box)
            lines.append(f"{image:{width}}  {score:4.2f}  {corners}  {name}")
    return "\n".join(lines)


def table_of_class_maps(predictions: Sequence[ClassMap]) -> str:
    """Lines of image, share of its pixels and class, for a terminal."""
    width = max((len(one.image) for one in predictions), default=0)
    lines = []
    for one in predictions:
        for rank, (name, share) in enumerate(one.shares().items()):
            image = one.image if rank == 0 else ""
            lines.append(f"{image:{width}}  {share:6.1%}  {name}")
    return "\n".join(lines)


def as_json(predictions: Sequence[Any]) -> str:
    """A JSON list, an object per image: the attributes of a prediction.

    Of class maps it has the shares of the classes. The map itself is the file of `--masks`.
    """
    return json.dumps([_as_dictionary(one) for one in predictions], indent=1)


def _as_dictionary(prediction: Any) -> dict[str, Any]:
    if isinstance(prediction, ClassMap):
        return {"image": prediction.image, "shares": prediction.shares(), "error": prediction.error}
    return dataclasses.asdict(prediction)


def write_masks(predictions: Sequence[ClassMap], directory: str | Path) -> None:
    """Writes class maps as grayscale PNG files, named as the images: the class of each pixel."""
    from PIL import Image

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for one in predictions:
        if one.error is None:
            kind = np.uint8 if len(one.names) <= 256 else np.uint16
            name = Path(one.image).with_suffix(".png").name
            Image.fromarray(one.classes.astype(kind)).save(folder / name)


def draw_class_maps(predictions: Sequence[ClassMap], path: str | Path, decoding: Decoding) -> None:
    """Draws image files with their classes and a legend, the first 48 that could be read."""
    from fastervit_jax.evaluation.sheet import sheet
    from fastervit_jax.segmentation.pictures import with_legend

    cells = [
        with_legend(decode_rgb(Path(one.image).read_bytes(), decoding), one.classes, one.names)
        for one in [each for each in predictions if each.error is None][:_MOST_DRAWN]
    ]
    if cells:
        sheet(cells).save(path, "PNG")


def draw(predictions: Sequence[Prediction], path: str | Path, decoding: Decoding) -> None:
    """Draws image files with their best classes below, the first 48 that could be read."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [one for one in predictions if one.error is None][:_MOST_DRAWN]
    if not shown:
        return
    columns = min(len(shown), 6)
    rows = -(-len(shown) // columns)
    lines = min(max(len(one.names) for one in shown), 5)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.6 * columns, (2.6 + 0.22 * lines) * rows),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, one in zip(axes.flat, shown, strict=False):
        axis.imshow(decode_rgb(Path(one.image).read_bytes(), decoding))
        axis.set_title(Path(one.image).name, fontsize=8, color="grey")
        answers = zip(one.names[:lines], one.probabilities, strict=False)
        text = "\n".join(f"{probability:.0%}  {_short(name)}" for name, probability in answers)
        axis.text(0, -0.03, text, transform=axis.transAxes, fontsize=9, va="top")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_objects(
    predictions: Sequence[DetectedObjects], path: str | Path, decoding: Decoding
) -> None:
    """Draws image files with boxes, the first 48 that could be read."""
    from fastervit_jax.detection.pictures import with_boxes
    from fastervit_jax.detection.postprocess import Detections
    from fastervit_jax.evaluation.sheet import sheet

    cells = []
    for one in [each for each in predictions if each.error is None][:_MOST_DRAWN]:
        found = Detections(
            np.asarray(one.scores), np.asarray(one.classes, int), np.asarray(one.boxes)
        )
        names = dict(zip(one.classes, one.names, strict=True))
        image = decode_rgb(Path(one.image).read_bytes(), decoding)
        cells.append(with_boxes(image, found, names, least_score=0.0))
    if cells:
        sheet(cells).save(path, "PNG")


def _short(name: str, most: int = 26) -> str:
    """The first of several synonyms, cut where a picture has no room."""
    first = name.split(",")[0]
    return first if len(first) <= most else first[: most - 1] + "…"


_SHOW: dict[str, tuple[Callable[..., str], Callable[..., None]]] = {
    "classification": (table, draw),
    "detection": (table_of_objects, draw_objects),
    "segmentation": (table_of_class_maps, draw_class_maps),
}


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit predict`, and returns what runs it."""
    open_model = define_weights_flags()
    top = flags.DEFINE_integer("top", 5, "Number of classes per image.", lower_bound=1)
    score = flags.DEFINE_float("score", 0.3, "Detectors: least score of a box.")
    batch_size = flags.DEFINE_integer("batch_size", 32, "Images per batch.", lower_bound=1)
    transparency, exif = define_decoding_flags(exif="apply")
    json_file = flags.DEFINE_string("json", None, "JSON file to write; - for standard output.")
    masks = flags.DEFINE_string(
        "masks", None, "Segmenters: directory for the class maps, as PNG files."
    )
    mode = flags.DEFINE_enum(
        "mode", "slide", ["slide", "whole"], "Segmenters: sliding windows, or the whole image."
    )
    scales = define_scales_flag(["1"])
    flip = flags.DEFINE_bool("flip", False, "Segmenters: also average over mirrored images.")
    picture = flags.DEFINE_string("picture", None, "PNG file to draw images and answers to.")

    def main(arguments: list[str]) -> None:
        images = arguments[1:]
        if not images:
            raise ValueError("Missing images: fastervit predict IMAGE… --model=NAME")
        model = open_model()
        predictions = predict(
            model,
            images,
            top=top.value,
            least_score=score.value,
            batch_size=batch_size.value,
            show_progress=True,
            transparency=transparency.value,
            exif=exif.value,
            mode=cast(Any, mode.value),
            scales=scales() or [1.0],
            flip=flip.value,
        )
        task = family_of(model.name).task
        if masks.value and task != "segmentation":
            raise ValueError(f"Invalid --masks: {model.name} is a network for {task}.")
        show, picture_of = _SHOW[task]
        if json_file.value == "-":
            print(as_json(predictions))
        else:
            readable = [one for one in predictions if one.error is None]
            print(show(readable))
        if json_file.value not in (None, "-"):
            Path(json_file.value).write_text(as_json(predictions) + "\n")
        if picture.value:
            decoding = Decoding(transparency.value, exif.value)
            picture_of(predictions, picture.value, decoding)
        if masks.value:
            write_masks(predictions, masks.value)
        unread = [one for one in predictions if one.error is not None]
        for one in unread:
            print(f"could not read {one.image}: {one.error}", file=sys.stderr)
        if len(unread) == len(predictions):
            raise ValueError("none of the images could be read.")

    return main
