"""Training transform on the host: random resized crop, flip, RandAugment.

The settings of the recipe are in docs/reference/numbers.md, section 4.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastervit_jax.augmentation.rand_augment import RandAugment, parse_rand_augment
from fastervit_jax.data.images import (
    AS_THE_REFERENCE,
    Decoding,
    Resolution,
    decode_rgb,
    height_and_width,
)

_FILTERS = {
    "bilinear": (Image.Resampling.BILINEAR,),
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}
_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class CropBox:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_crop_box(
    image_height: int,
    image_width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> CropBox:
    """Draws the rectangle of a random resized crop.

    The area, divided by the image's area, is uniform in `scale`. The aspect ratio (width / height)
    is log-uniform in `ratio`. The first of ten attempts that fits into the image gets a uniform
    position. If no attempt fits, the result is the largest centered rectangle with an aspect ratio
    within `ratio`.

    Follows timm 0.9.16's `RandomResizedCropAndInterpolation.get_params`.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*scale) * image_height * image_width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width = round(math.sqrt(area * aspect))
        height = round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            top = int(rng.integers(0, image_height - height, endpoint=True))
            left = int(rng.integers(0, image_width - width, endpoint=True))
            return CropBox(top, left, height, width)
    height, width = image_height, image_width
    if width / height < ratio[0]:
        height = round(width / ratio[0])
    elif width / height > ratio[1]:
        width = round(height * ratio[1])
    return CropBox((image_height - height) // 2, (image_width - width) // 2, height, width)


@dataclass(frozen=True)
class TrainTransform:
    """Turns `(encoded, rng)` into a training image, uint8 `[H, W, 3]`, as in the official recipe.

    Attributes:
        resolution: side of the image, or (height, width), in pixels.
        scale: range of the crop's area, divided by the image's area.
        ratio: range of the crop's aspect ratio, width / height.
        interpolation: "bilinear", "bicubic", or "random" to choose one of the two for each image.
        flip: probability of a horizontal flip.
        rand_augment: a RandAugment string as in timm, such as "rand-m9-mstd0.5-inc1". An empty
            string disables RandAugment.
        decoding: what becomes of transparency and of the EXIF orientation.
    """

    resolution: Resolution
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    flip: float = 0.5
    rand_augment: str = ""
    decoding: Decoding = AS_THE_REFERENCE

    def __post_init__(self):
        height_and_width(self.resolution)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"Invalid scale: expected a range in (0, 1], got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"Invalid ratio: expected a range of positive numbers, got {self.ratio}."
            )
        if self.interpolation not in _FILTERS:
            raise ValueError(
                f"Invalid interpolation: expected one of {', '.join(_FILTERS)}, got "
                f"{self.interpolation!r}."
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"Invalid flip: expected a probability from 0 to 1, got {self.flip}.")
        if self.rand_augment:
            parse_rand_augment(self.rand_augment)

    def __call__(self, encoded: bytes, rng: np.random.Generator) -> np.ndarray:
        """Decodes and distorts one image.

        Raises:
            DamagedImageError: the bytes cannot be decoded (see `decode_rgb`).
        """
        return np.asarray(self.distort(decode_rgb(encoded, self.decoding), rng))

    def distort(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Applies the transform to a decoded RGB image of any size."""
        box = draw_crop_box(image.height, image.width, scale=self.scale, ratio=self.ratio, rng=rng)
        filters = _FILTERS[self.interpolation]
        image = crop_and_resize(image, box, self.resolution, filters[rng.integers(len(filters))])
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._augment is not None:
            image = self._augment(image, rng)
        return image

    @functools.cached_property
    def _augment(self) -> RandAugment | None:
        if not self.rand_augment:
            return None
        # As in timm, a fixed filter of the crop is also the filter of the geometric operations.
        return parse_rand_augment(self.rand_augment, _FILTERS[self.interpolation])


def crop_and_resize(
    image: Image.Image, box: CropBox, resolution: Resolution, resampling: Image.Resampling
) -> Image.Image:
    """Crops `box` and resizes it to `resolution`, as torchvision's `resized_crop` does."""
    height, width = height_and_width(resolution)
    # Crop first, because the filter of `resize(box=...)` would use pixels outside the box.
    image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    if image.size == (width, height):
        return image
    return image.resize((width, height), resampling)
