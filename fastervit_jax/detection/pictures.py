"""Pictures of detections."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from fastervit_jax.data.images import decode_rgb
from fastervit_jax.data.sources.coco import CocoSource
from fastervit_jax.detection.postprocess import Detections
from fastervit_jax.evaluation.sheet import sheet

TRUTH = (255, 255, 255)
_COLORS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 165, 0),
    (0, 130, 255),
    (240, 50, 230),
    (70, 240, 240),
    (188, 246, 12),
    (250, 190, 190),
)
_SIDE = 320


def with_boxes(
    image: Image.Image,
    found: Detections,
    names: Sequence[str] | Mapping[int, str],
    *,
    least_score: float,
    truth: np.ndarray | None = None,
) -> Image.Image:
    """A copy of an image with boxes, names and scores; boxes of the ground truth are white.

    Args:
        image: RGB.
        found: detections of the image, [K].
        names: of the classes.
        least_score: detections with a lower score are left out.
        truth: corner boxes of the ground truth, [n, 4].
    """
    scale = max(1, _SIDE // max(image.size))
    image = image.resize((image.width * scale, image.height * scale))
    draw = ImageDraw.Draw(image)
    width = max(1, min(image.size) // 150)
    for box in () if truth is None else truth:
        draw.rectangle(list(np.asarray(box) * scale), outline=TRUTH, width=width)
    shown = np.flatnonzero(np.asarray(found.scores) >= least_score)
    for row in shown[::-1]:  # the best on top
        label = int(found.labels[row])
        color = _COLORS[label % len(_COLORS)]
        box = [float(each) * scale for each in found.boxes[row]]
        box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
        draw.rectangle(box, outline=color, width=width + 1)
        text = f"{names[label] or label} {found.scores[row]:.2f}"
        corner = (box[0] + 2, max(0, box[1] - 12))
        draw.rectangle(draw.textbbox(corner, text), fill=color)
        draw.text(corner, text, fill=(0, 0, 0))
    return image


def draw_detections(
    source: CocoSource,
    detections: Mapping[int, Detections],
    path: epath.PathLike,
    *,
    images: int = 12,
    least_score: float = 0.3,
) -> None:
    """Draws the first images of a data set, four in a row, with detections and ground truth."""
    cells = []
    for index in sorted(detections)[:images]:
        example = source[index]
        image = decode_rgb(example.encoded, source.decoding)
        drawn = with_boxes(
            image,
            detections[index],
            source.class_names,
            least_score=least_score,
            truth=example.boxes,
        )
        cells.append(drawn)
    buffer = io.BytesIO()
    sheet(cells).save(buffer, "PNG")
    epath.Path(path).write_bytes(buffer.getvalue())
