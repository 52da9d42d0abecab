"""Preprocessing of each model: image size, crop, mean and standard deviation."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from fastervit_jax.data.images import EvalTransform
from fastervit_jax.models import family_of, network_config

CropMode = Literal["center", "squash"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a decoded RGB image becomes the input of a network.

    The image is resized and cropped (`fastervit_jax.data.decode_eval`) and divided by 255. Then
    each channel is normalized by its mean and standard deviation.

    Attributes:
        resolution: (height, width) of the crop, in pixels.
        crop_mode: "center" keeps the aspect ratio and crops the center. "squash" resizes without
            keeping the aspect ratio.
        crop_fraction: size of the crop divided by the size of the resized image.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        short_side: detectors and segmenters: length of the short side after resizing, without a
            crop; None: as above.
        long_side: detectors and segmenters: largest length of the long side.
    """

    resolution: tuple[int, int]
    crop_mode: CropMode
    crop_fraction: float
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    short_side: int | None = None
    long_side: int | None = None

    def __post_init__(self):
        # Values come from files: what uses them later would fail without saying which is wrong.
        EvalTransform(self.resolution, self.crop_fraction, self.crop_mode)
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
                raise ValueError(f"Invalid {name}: expected a number per channel, got {values!r}.")
        for name in ("short_side", "long_side"):
            side = getattr(self, name)
            if side is not None and not (isinstance(side, int) and side > 0):
                raise ValueError(f"Invalid {name}: expected pixels, got {side!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**31


# From the official `default_cfgs`, by the first part of the model name. An any_res model has the
# same crop as the model of fixed resolution.
_CROPS: dict[str, tuple[CropMode, float]] = {
    "faster_vit_0": ("center", 0.875),
    "faster_vit_4_21k_224": ("squash", 0.95),
    "faster_vit_4_21k_384": ("squash", 1.0),
    "faster_vit_4_21k_512": ("squash", 1.0),
    "faster_vit_4_21k_768": ("squash", 0.93),
}
# Short and long side of the images of the other tasks, as in COCO's and ADE20K's evaluations.
_SIDES = {"detection": (800, 1333), "segmentation": (512, 2048)}
_USUAL_CROP: tuple[CropMode, float] = ("center", 1.0)

ROBUSTNESS_CROP: tuple[CropMode, float] = ("center", 0.875)
"""Crop mode and fraction of every model for ImageNet-A, -R and -V2 (README of the official
repository)."""


def default_preprocessing(name: str, resolution: tuple[int, int] | None = None) -> Preprocessing:
    """Returns the published preprocessing of a model.

    Args:
        name: a model name.
        resolution: (height, width) in pixels; None means the model's own resolution.

    Raises:
        ValueError: the model name is unknown.
    """
    own_resolution = network_config(name).resolution
    matching = (crop for prefix, crop in _CROPS.items() if name.startswith(prefix))
    mode, fraction = next(matching, _USUAL_CROP)
    sides = _SIDES.get(family_of(name).task, (None, None))
    return Preprocessing(
        resolution or own_resolution, mode, fraction, short_side=sides[0], long_side=sides[1]
    )


def check_rgb(in_chans: int) -> None:
    """Raises ValueError unless a network of so many channels takes RGB images."""
    if in_chans != 3:
        raise ValueError(
            f"Invalid model with in_chans={in_chans}: images are read as RGB. Use a model of 3 "
            "channels, or call model(images) on arrays of your own."
        )


def normalize(
    images: jax.Array,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation of every channel.

    Args:
        images: uint8 `[..., C]`.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        dtype: dtype of the result. The computation uses float32.

    Returns:
        `(images / 255 - mean) / std`, with the shape of `images`.

    Raises:
        ValueError: the images are not uint8, or `mean` and `std` do not have one positive value
            per channel.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"Invalid images: expected dtype uint8, got {images.dtype}.")
    if not images.shape[-1] == len(mean) == len(std):
        raise ValueError(
            f"Invalid mean or std: expected {images.shape[-1]} values, one per channel of images "
            f"of shape {images.shape}, got {len(mean)} and {len(std)}."
        )
    if not all(s > 0 for s in std):
        raise ValueError(f"Invalid std: expected positive values, got {tuple(std)}.")
    scaled_mean = jnp.array([255 * m for m in mean], jnp.float32)
    scaled_std = jnp.array([255 * s for s in std], jnp.float32)
    return ((images.astype(jnp.float32) - scaled_mean) / scaled_std).astype(dtype)


def normalize_padded(images: jax.Array, sizes: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Normalizes padded images by ImageNet's mean and deviation; padding becomes 0.

    Args:
        images: uint8 [N, H, W, 3].
        sizes: (height, width) of the part of each image, from the top left, that is no padding,
            int [N, 2].
        dtype: dtype of the result.
    """
    rows = jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :] < sizes[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], normalize(images, dtype=dtype), 0)
