"""Training transform of images with masks: random resize, crop, flip, photometric distortion.

Follows mmsegmentation's pipeline for ADE20K (`RandomResize`, `RandomCrop`, `RandomFlip`,
`PhotoMetricDistortion`), which the recipes of transformer backbones use. Two things differ: images
are resized by Pillow's antialiased bilinear filter, as everywhere in this project, and hues are
shifted in Pillow's 256 steps instead of OpenCV's 180.
"""

import dataclasses

import numpy as np
from PIL import Image

from fastervit_jax.data.sources.masks import IGNORE

Size = tuple[int, int]
"""(height, width) in pixels."""

_CROP_ATTEMPTS = 10
_LARGEST_BRIGHTNESS = 32
_CONTRAST = (0.5, 1.5)
_SATURATION = (0.5, 1.5)
_LARGEST_HUE = 18 * 256 / 180  # in Pillow's steps


@dataclasses.dataclass(frozen=True)
class MaskTransform:
    """Distorts an image and its mask, and cuts out a crop of one size.

    Attributes:
        crop: (height, width) of the result.
        short_side: length of the short side that a drawn factor changes.
        long_side: largest length of the long side that the factor changes.
        ratio: smallest and largest factor of the random resize.
        max_class_share: a crop should have at most this share of its labeled pixels in one class;
            the last of ten draws is taken as it is. 1 takes the first draw.
        flip: probability of a horizontal flip.
        distort: whether brightness, contrast, saturation and hue change.
    """

    crop: Size
    short_side: int = 512
    long_side: int = 2048
    ratio: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: float = 0.5
    distort: bool = True

    def __call__(
        self, image: Image.Image, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, Size]:
        """Draws a training example.

        Args:
            image: RGB.
            mask: classes, uint8 [H, W], of the size of the image.
            rng: source of randomness.

        Returns:
            The image, uint8 [*crop, 3], and its mask, uint8 [*crop]; (height, width) of the part
            that shows the image. To the right and below it, the image is 0 and the mask `IGNORE`.
        """
        factor = rng.uniform(*self.ratio)
        size = fitted(
            (image.height, image.width),
            short_side=int(self.short_side * factor),
            long_side=int(self.long_side * factor),
        )
        image = resize_image(image, size)
        mask = resize_mask(mask, size)
        top, left = self._corner(mask, rng)
        height, width = min(self.crop[0], size[0]), min(self.crop[1], size[1])
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        part = mask[top : top + height, left : left + width]
        if rng.random() < self.flip:
            pixels, part = pixels[:, ::-1], part[:, ::-1]
        if self.distort:
            pixels = distort_colors(pixels, rng)
        padded = np.zeros((*self.crop, 3), np.uint8)
        padded[:height, :width] = pixels
        classes = np.full(self.crop, IGNORE, np.uint8)
        classes[:height, :width] = part
        return padded, classes, (height, width)

    def _corner(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """Draws where the crop begins."""
        room = [max(0, mask.shape[axis] - self.crop[axis]) for axis in (0, 1)]
        corner = (0, 0)
        for _ in range(_CROP_ATTEMPTS):
            corner = (
                int(rng.integers(0, room[0], endpoint=True)),
                int(rng.integers(0, room[1], endpoint=True)),
            )
            if self.max_class_share >= 1:
                break
            top, left = corner
            part = mask[top : top + self.crop[0], left : left + self.crop[1]]
            counts = np.bincount(part[part != IGNORE])
            present = counts[counts > 0]
            if len(present) > 1 and present.max() < self.max_class_share * present.sum():
                break
        return corner


def fitted(size: Size, *, short_side: int, long_side: int) -> Size:
    """The largest size of the same aspect within two limits (mmcv's `rescale_size`)."""
    factor = min(long_side / max(size), short_side / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def resize_image(image: Image.Image, size: Size) -> Image.Image:
    """Resizes an image to (height, width), bilinear with antialiasing."""
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a mask to (height, width): the nearest class."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized)


def distort_colors(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with a probability of one half.

    Follows mmsegmentation's `PhotoMetricDistortion`: the contrast changes either before or after
    saturation and hue.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        rng: source of randomness.
    """
    if rng.random() < 0.5:
        pixels = _scaled(pixels, 1.0, rng.uniform(-_LARGEST_BRIGHTNESS, _LARGEST_BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        pixels = _scaled(pixels, rng.uniform(*_CONTRAST), 0.0)
    saturation = rng.uniform(*_SATURATION) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-_LARGEST_HUE, _LARGEST_HUE) if rng.random() < 0.5 else 0.0
    if saturation != 1.0 or hue:
        values = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        values[..., 0] = (values[..., 0].astype(int) + round(hue)) % 256
        values[..., 1] = _scaled(values[..., 1], saturation, 0.0)
        size = (pixels.shape[1], pixels.shape[0])
        pixels = np.asarray(Image.frombytes("HSV", size, values.tobytes()).convert("RGB"))
    if not contrast_first and rng.random() < 0.5:
        pixels = _scaled(pixels, rng.uniform(*_CONTRAST), 0.0)
    return pixels


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
