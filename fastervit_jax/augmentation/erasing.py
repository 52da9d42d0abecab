"""Random erasing of normalized images on the device.

Follows timm 0.9.16's `RandomErasing` in mode "pixel" with one rectangle. The method is from
[Random Erasing Data Augmentation](https://arxiv.org/abs/1708.04896).
"""

import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from fastervit_jax.augmentation.random_draws import (
    check_probability,
    index_below,
    inside_box,
    uniform,
)

# timm draws up to this many rectangles until one is smaller than the image. If none is, it erases
# nothing.
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
    """Fills a random rectangle of some images with noise, N(0, 1) per pixel and channel.

    Args:
        key: random key.
        images: normalized images, `[N, H, W, C]`, float dtype.
        probability: probability that a rectangle of an image is erased.
        area: smallest and largest area of the rectangle, divided by the image's area.
        aspect: smallest and largest height / width. The value is drawn log-uniformly.
        first_image: index of the first image in the global batch. The draws depend on it.

    Returns:
        The images, with the same shape and dtype.

    Raises:
        ValueError: the images are not a batch of floats, or a setting is out of range.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            "Invalid images for random erasing: expected normalized floats of shape "
            f"[N, H, W, C], got {images.dtype} of shape {images.shape}."
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
    """Draws the rectangles to erase, as timm's `RandomErasing._erase` does.

    Args:
        key: random key.
        image_indices: indices of the images in the global batch, int `[N]`.
        image_size: height and width, in pixels.
        probability: as in `random_erasing`.
        area: as in `random_erasing`.
        aspect: as in `random_erasing`.

    Returns:
        int32 `[N, 4]`: top, bottom, left, right in pixels. Bottom and right are exclusive. The
        rectangle is empty if nothing is erased.

    Raises:
        ValueError: a setting is out of range.
    """
    chex.assert_rank(image_indices, 1)
    check_probability("erasing probability", probability)
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
        # Take the first attempt that fits. If none fits, argmax is 0 and nothing is erased.
        chosen = jnp.argmax(fits)
        h, w = heights[chosen], widths[chosen]
        top, left = index_below(height - h + 1, y), index_below(width - w + 1, x)
        is_erased = fits.any() & (erasing < probability)
        return jnp.where(is_erased, jnp.stack([top, top + h, left, left + w]), 0)

    return jax.vmap(draw_one)(image_indices).astype(jnp.int32)


def apply_erasing(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
    """Replaces a rectangle of every image by noise.

    Args:
        images: `[N, H, W, C]`.
        boxes: int `[N, 4]`: top, bottom, left, right in pixels. Bottom and right are exclusive.
        noise: `[N, H, W, C]`. Noise outside the rectangles is not used.

    Returns:
        The images, with the same shape and dtype.
    """
    chex.assert_rank(images, 4)
    chex.assert_shape(boxes, (len(images), 4))
    chex.assert_equal_shape([images, noise])
    inside = jax.vmap(functools.partial(inside_box, height=images.shape[1], width=images.shape[2]))
    return jnp.where(inside(boxes)[..., None], noise.astype(images.dtype), images)


def _check_range(name: str, limits: tuple[float, float], upper: float = math.inf) -> None:
    low, high = limits
    if not 0 < low <= high <= upper or math.isinf(high):
        raise ValueError(
            f"Invalid {name}: expected 0 < smallest <= largest"
            f"{'' if math.isinf(upper) else f' <= {upper:g}'}, got {limits}."
        )
