"""Classifies images, or detects objects: fastervit predict IMAGE… --model=NAME --weights=PATH.

IMAGE is a file, or a folder of them. Prints a table; --json=FILE and --picture=FILE write the
answers as JSON, and under the images. A file that cannot be read is named, and the rest goes on.

The function behind it is `fastervit_jax.predict`.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fastervit_jax.commands.flags import define_decoding_flags, define_weights_flags
from fastervit_jax.data.images import Decoding, decode_rgb
from fastervit_jax.models import family_of
from fastervit_jax.prediction import DetectedObjects, Prediction, predict

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


def as_json(predictions: Sequence[Any]) -> str:
    """A JSON list, an object per image: the attributes of a prediction."""
    return json.dumps([dataclasses.asdict(one) for one in predictions], indent=1)


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
    import numpy as np

    from fastervit_jax.detection.pictures import sheet, with_boxes
    from fastervit_jax.detection.postprocess import Detections

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


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit predict`, and returns what runs it."""
    open_model = define_weights_flags()
    top = flags.DEFINE_integer("top", 5, "Number of classes per image.", lower_bound=1)
    score = flags.DEFINE_float("score", 0.3, "Detectors: least score of a box.")
    batch_size = flags.DEFINE_integer("batch_size", 32, "Images per batch.", lower_bound=1)
    transparency, exif = define_decoding_flags(exif="apply")
    json_file = flags.DEFINE_string("json", None, "JSON file to write; - for standard output.")
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
        )
        detects = family_of(model.name).task == "detection"
        if json_file.value == "-":
            print(as_json(predictions))
        else:
            readable = [one for one in predictions if one.error is None]
            print(table_of_objects(readable) if detects else table(readable))
        if json_file.value not in (None, "-"):
            Path(json_file.value).write_text(as_json(predictions) + "\n")
        if picture.value:
            decoding = Decoding(transparency.value, exif.value)
            (draw_objects if detects else draw)(predictions, picture.value, decoding)
        unread = [one for one in predictions if one.error is not None]
        for one in unread:
            print(f"could not read {one.image}: {one.error}", file=sys.stderr)
        if len(unread) == len(predictions):
            raise ValueError("none of the images could be read.")

    return main
