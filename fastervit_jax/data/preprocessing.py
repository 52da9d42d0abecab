"""How each network wants its images: size, crop, mean and standard deviation."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from fastervit_jax.models import variant_config

CropMode = Literal["center", "squash"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a decoded RGB image to a network's input.

    The image is resized bicubically and cropped (`fastervit_jax.data.decode_eval`), divided by 255,
    and normalised by mean and standard deviation, channel by channel.

    Attributes:
        resolution: (height, width) of the crop, in pixels.
        crop_mode: "center" keeps the aspect and crops the middle, "squash" ignores it.
        crop_fraction: the crop's share of the resized image.
        mean: of each channel, for values from 0 to 1.
        std: standard deviation of each channel.
    """

    resolution: tuple[int, int]
    crop_mode: CropMode
    crop_fraction: float
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


# The official `default_cfgs`, by what model names begin with (an any_res model's like its
# sibling's).
_CROPS: dict[str, tuple[CropMode, float]] = {
    "faster_vit_0": ("center", 0.875),
    "faster_vit_4_21k_224": ("squash", 0.95),
    "faster_vit_4_21k_384": ("squash", 1.0),
    "faster_vit_4_21k_512": ("squash", 1.0),
    "faster_vit_4_21k_768": ("squash", 0.93),
}
_USUAL_CROP: tuple[CropMode, float] = ("center", 1.0)

ROBUSTNESS_CROP: tuple[CropMode, float] = ("center", 0.875)
"""Crop mode and fraction for ImageNet-A, -R and -V2, whatever the model (README of the official
repository)."""


def default_preprocessing(name: str, resolution: tuple[int, int] | None = None) -> Preprocessing:
    """The published preprocessing of a model.

    Args:
        name: an official model name.
        resolution: (height, width) where it is not the model's own.

    Raises:
        ValueError: the name is unknown.
    """
    own_resolution = variant_config(name).resolution
    matching = (crop for prefix, crop in _CROPS.items() if name.startswith(prefix))
    mode, fraction = next(matching, _USUAL_CROP)
    return Preprocessing(resolution or own_resolution, mode, fraction)


def normalize(
    images: jax.Array,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation of every channel.

    Args:
      images: uint8 ``[..., C]``.
      mean: mean of each channel for images from 0 to 1.
      std: standard deviation of each channel for images from 0 to 1.
      dtype: dtype of the result; the arithmetic is float32.

    Returns:
      ``(images / 255 - mean) / std``, of the shape of `images`.

    Raises:
      ValueError: if the images are not uint8 or their channels do not fit mean and std.
    """
    if images.dtype != jnp.uint8:
        raise ValueError(f"Images to normalise must be uint8, 0 to 255; got {images.dtype}.")
    if not images.shape[-1] == len(mean) == len(std):
        raise ValueError(
            f"Images of shape {images.shape} have {images.shape[-1]} channels; mean has "
            f"{len(mean)} and std {len(std)} values."
        )
    if not all(s > 0 for s in std):
        raise ValueError(f"Standard deviations must be above 0; got {tuple(std)}.")
    scaled_mean = jnp.array([255 * m for m in mean], jnp.float32)
    scaled_std = jnp.array([255 * s for s in std], jnp.float32)
    return ((images.astype(jnp.float32) - scaled_mean) / scaled_std).astype(dtype)
