"""Random erasing on the device, of normalised images.

Follows timm 0.9.16's ``RandomErasing`` in mode "pixel" with one rectangle
(`Random Erasing Data Augmentation <https://arxiv.org/abs/1708.04896>`_).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fastervit_jax.augmentation.random_draws import (
    check_probability,
    index_below,
    inside_box,
    uniform,
)

# timm tries this often for a rectangle that is smaller than the image, then leaves it whole.
ERASING_ATTEMPTS = 10


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    first_image: int | jax.Array = 0,
) -> jax.Array:
    """Fills a random rectangle of some images with noise, N(0, 1) for every pixel and channel.

    Args:
      key: random key.
      images: normalised, of a float dtype, ``[N, H, W, C]``.
      probability: probability that an image has a rectangle erased.
      area: smallest and largest target area, as shares of the image.
      aspect: smallest and largest height / width, drawn log-uniformly.
      first_image: index of the first image in the global batch: the draws depend on it.

    Returns:
      The images, shape and dtype as they came.

    Raises:
      ValueError: for images that are no float batch, or settings out of range.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "Random erasing comes after normalisation: images must be floats of shape "
            f"[N, H, W, C]; got {images.dtype} of shape {images.shape}."
        )
    box_key, noise_key = jax.random.split(key)
    image_indices = first_image + jnp.arange(images.shape[0])
    boxes = draw_erasing(
        box_key,
        image_indices,
        image_size=images.shape[1:3],
        probability=probability,
        area=area,
        aspect=aspect,
    )
    if probability == 0:
        return images

    def draw_noise(image_index: jax.Array) -> jax.Array:
        image_key = jax.random.fold_in(noise_key, image_index)
        return jax.random.normal(image_key, images.shape[1:], jnp.float32)

    return apply_erasing(images, boxes, jax.vmap(draw_noise)(image_indices))


def draw_erasing(
    key: jax.Array,
    image_indices: jax.Array,
    *,
    image_size: Sequence[int],
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> jax.Array:
    """Draws the rectangles to erase, as timm's ``RandomErasing._erase`` does.

    Args:
      key: random key.
      image_indices: the images' indices in the global batch, int ``[N]``.
      image_size: height and width, in pixels.
      probability: as in `random_erasing`.
      area: as in `random_erasing`.
      aspect: as in `random_erasing`.

    Returns:
      int32 ``[N, 4]``: top, bottom, left, right in pixels, the ends exclusive; an empty rectangle
      where nothing is erased.

    Raises:
      ValueError: for settings out of range.
    """
    check_probability("probability", probability)
    _check_range("erasing area", area, upper=1.0)
    _check_range("erasing aspect", aspect)
    height, width = image_size
    log_aspect = [math.log(limit) for limit in aspect]

    def draw_one(image_index: jax.Array) -> jax.Array:
        numbers = uniform(jax.random.fold_in(key, image_index), (2 * ERASING_ATTEMPTS + 3,))
        of_area, of_aspect, (erasing, y, x) = jnp.split(
            numbers, [ERASING_ATTEMPTS, 2 * ERASING_ATTEMPTS]
        )
        target_area = (area[0] + (area[1] - area[0]) * of_area) * height * width
        ratio = jnp.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * of_aspect)
        heights = jnp.rint(jnp.sqrt(target_area * ratio)).astype(jnp.int32)
        widths = jnp.rint(jnp.sqrt(target_area / ratio)).astype(jnp.int32)
        fits = (heights < height) & (widths < width)
        # The first attempt that fits; where none does, the first one, and nothing is erased.
        chosen = jnp.argmax(fits)
        h, w = heights[chosen], widths[chosen]
        top, left = index_below(height - h + 1, y), index_below(width - w + 1, x)
        is_erased = fits.any() & (erasing < probability)
        return jnp.where(is_erased, jnp.stack([top, top + h, left, left + w]), 0)

    return jax.vmap(draw_one)(image_indices).astype(jnp.int32)


def apply_erasing(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
    """Puts noise in place of a rectangle of every image.

    Args:
      images: ``[N, H, W, C]``.
      boxes: int ``[N, 4]``: top, bottom, left, right in pixels, the ends exclusive.
      noise: ``[N, H, W, C]``; what lies outside the rectangles is not used.

    Returns:
      The images, shape and dtype as they came.
    """
    inside = jax.vmap(functools.partial(inside_box, height=images.shape[1], width=images.shape[2]))
    return jnp.where(inside(boxes)[..., None], noise.astype(images.dtype), images)


def _check_range(name: str, limits: tuple[float, float], upper: float = math.inf) -> None:
    low, high = limits
    if not 0 < low <= high <= upper or math.isinf(high):
        raise ValueError(
            f"The {name} needs a smallest and a largest value above 0, the largest not below the "
            f"smallest{'' if math.isinf(upper) else f' nor above {upper:g}'}; got {limits}."
        )
