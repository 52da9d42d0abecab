"""Pictures of class maps."""

import colorsys
import io
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from fastervit_jax.data.images import Decoding
from fastervit_jax.data.sources.masks import IGNORE, MaskedSource
from fastervit_jax.evaluation.sheet import sheet

_OPACITY = 0.6
_SIDE = 320
_GOLDEN_RATIO = 0.618034
_UNCOLORED = "background"
_ROW = 16  # height of a line of the legend


def color(label: int) -> tuple[int, int, int]:
    """The color of a class: neighboring classes differ."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, 0.85, (1.0, 0.75)[label % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: Image.Image, classes: np.ndarray, labels: Sequence[int]) -> Image.Image:
    """An RGB image with the colors of some classes over it.

    Args:
        image: RGB.
        classes: the class of each pixel, [H, W].
        labels: the classes that are colored.
    """
    pixels = np.array(image, np.float32)
    for label in labels:
        pixels[classes == label] *= 1 - _OPACITY
        pixels[classes == label] += _OPACITY * np.asarray(color(label), np.float32)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def legend(labels: Sequence[int], names: Sequence[str], width: int) -> Image.Image:
    """The colors and names of classes, in as many lines as they need at a width in pixels."""
    places, line, left = [], 0, 0
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for label in labels:
        needed = _ROW + round(probe.textlength(names[label])) + 12
        if left and left + needed > width:
            line, left = line + 1, 0
        places.append((label, line, left))
        left += needed
    picture = Image.new("RGB", (width, (line + 1) * _ROW + 4), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for label, row, x in places:
        top = row * _ROW + 2
        draw.rectangle((x + 2, top + 2, x + 12, top + 12), fill=color(label))
        draw.text((x + _ROW, top), names[label], fill=(0, 0, 0))
    return picture


def with_legend(image: Image.Image, classes: np.ndarray, names: Sequence[str]) -> Image.Image:
    """An overlay, and below it the legend of the classes in it.

    Ignored pixels and those of a class named "background" stay as they are.
    """
    scale = max(1, _SIDE // max(image.size))
    present = (int(label) for label in np.unique(classes[classes != IGNORE]))
    labels = [label for label in present if names[label] != _UNCOLORED]
    picture = overlay(image, classes, labels)
    picture = picture.resize((image.width * scale, image.height * scale))
    if not labels:
        return picture
    below = legend(labels, names, picture.width)
    result = Image.new("RGB", (picture.width, picture.height + below.height), (255, 255, 255))
    result.paste(picture, (0, 0))
    result.paste(below, (0, picture.height))
    return result


def draw_class_maps(
    source: MaskedSource,
    maps: Mapping[int, np.ndarray],
    path: epath.PathLike,
    *,
    decoding: Decoding,
    images: int = 6,
) -> None:
    """Draws images, two in a row: each with its true classes, then with the predicted ones."""
    cells = []
    for index in sorted(maps)[:images]:
        image, mask = source.read(source[index], decoding)
        cells += [with_legend(image, each, source.class_names) for each in (mask, maps[index])]
    buffer = io.BytesIO()
    sheet(cells).save(buffer, "PNG")
    epath.Path(path).write_bytes(buffer.getvalue())
