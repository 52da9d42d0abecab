"""Training transforms of images with boxes: flip, crop, resize (DETR's, as the official DINO).

What happens to an image is drawn before it is read, from its size alone. So the size of a batch is
known on every host before any image is decoded.
"""

import dataclasses

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclasses.dataclass(frozen=True)
class ResizeSettings:
    """How images are resized and cropped. The defaults are the official ones.

    Attributes:
        short_sides: lengths of the short side, one of which is drawn.
        long_side: the largest length of the long side.
        crop_probability: probability that an image is cropped before.
        crop_short_sides: lengths of the short side before a crop, one of which is drawn.
        crop_sides: shortest and longest side of a crop.
        flip: probability of a horizontal flip.
    """

    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    flip: float = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to an image, in this order.

    Attributes:
        flip: flip it horizontally.
        before: resize it to this size before a crop; None: no crop.
        crop: (left, top, right, bottom) of the crop, in pixels of `before`.
        size: resize it to this size.
    """

    flip: bool
    before: Size | None
    crop: tuple[int, int, int, int] | None
    size: Size

    def fitted(self, limit: Size) -> "Plan":
        """The same plan with a size of at most `limit`."""
        share = min(1.0, limit[0] / self.size[0], limit[1] / self.size[1])
        height, width = (max(1, int(side * share)) for side in self.size)
        return dataclasses.replace(self, size=(height, width))


def resized(size: Size, short_side: int, long_side: int | None = None) -> Size:
    """A size with another short side and the same aspect, but no longer than `long_side`.

    Follows DETR's `get_size_with_aspect_ratio`, with its rounding.
    """
    height, width = size
    shorter, longer = min(size), max(size)
    if long_side is not None and longer / shorter * short_side > long_side:
        short_side = round(long_side * shorter / longer)
    if shorter == short_side:
        return size
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def draw_plan(size: Size, settings: ResizeSettings, rng: np.random.Generator) -> Plan:
    """Draws what happens to an image of a size."""
    flip = bool(rng.random() < settings.flip)
    before = crop = None
    if rng.random() < settings.crop_probability:
        before = resized(size, int(rng.choice(settings.crop_short_sides)))
        height, width = (_crop_side(side, settings, rng) for side in before)
        top = int(rng.integers(0, before[0] - height, endpoint=True))
        left = int(rng.integers(0, before[1] - width, endpoint=True))
        crop = (left, top, left + width, top + height)
        size = (height, width)
    short_side = int(rng.choice(settings.short_sides))
    return Plan(flip, before, crop, resized(size, short_side, settings.long_side))


def _crop_side(side: int, settings: ResizeSettings, rng: np.random.Generator) -> int:
    shortest, longest = settings.crop_sides
    return int(rng.integers(min(side, shortest), min(side, longest), endpoint=True))


def apply_to_image(image: Image.Image, plan: Plan) -> Image.Image:
    """Applies a plan to pixels."""
    if plan.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if plan.before is not None and plan.crop is not None:
        image = _resize(image, plan.before).crop(plan.crop)
    return _resize(image, plan.size)


def _resize(image: Image.Image, size: Size) -> Image.Image:
    if image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def apply_to_boxes(boxes: np.ndarray, size: Size, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Applies a plan to corner boxes in pixels.

    Args:
        boxes: [n, 4], in an image of `size`.
        size: of the image before.
        plan: what happens to it.

    Returns:
        Corner boxes in pixels of the result, float32 [n, 4], and which of them still have an area,
        bool [n]. The others left the crop.
    """
    boxes = boxes.astype(np.float32).copy()
    if plan.flip:
        boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
    if plan.before is not None and plan.crop is not None:
        boxes *= _scale(size, plan.before)
        left, top, right, bottom = plan.crop
        boxes -= np.asarray([left, top, left, top], np.float32)
        size = (bottom - top, right - left)
        boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, size[1])
        boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, size[0])
    boxes *= _scale(size, plan.size)
    return boxes, np.all(boxes[:, 2:] > boxes[:, :2], axis=1)


def _scale(size: Size, new: Size) -> np.ndarray:
    rows, columns = new[0] / size[0], new[1] / size[1]
    return np.asarray([columns, rows, columns, rows], np.float32)


def shares(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Corner boxes in pixels as center boxes in shares of an image's width and height."""
    low, high = boxes[:, :2], boxes[:, 2:]
    centers = np.concatenate([(low + high) / 2, high - low], axis=1)
    return (centers / np.asarray([size[1], size[0]] * 2, np.float32)).astype(np.float32)
