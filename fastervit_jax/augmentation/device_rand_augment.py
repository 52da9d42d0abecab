"""Flip and RandAugment on the device, inside the jitted step.

Operations are drawn with JAX's random numbers from the distribution of `rand_augment.RandAugment`.
They are applied with `device_operations`. The host then only decodes and crops.

A draw depends only on the key and on the index of the image in the global batch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from PIL import Image

from fastervit_jax.augmentation.device_operations import COLOR, GEOMETRIC, affine
from fastervit_jax.augmentation.rand_augment import FIFTEEN, RandAugment
from fastervit_jax.augmentation.random_draws import check_probability, index_below, uniform

# Most operations cost less than selecting the few images that drew them. They are applied to the
# whole batch, and the result is kept for the images that drew them. These operations and the
# geometric ones cost more. They are applied to chunks of `CHUNK` images that drew them.
COSTLY = ("Equalize", "Sharpness")
CHUNK = 8

NO_OPERATION = -1


class RandAugmentDraw(NamedTuple):
    """The random draws of `L` layers of operations for `N` images.

    Attributes:
        operation: int32 `[N, L]`, index into `FIFTEEN` or `NO_OPERATION`.
        magnitude: float32 `[N, L]`, strength of the operation.
        negative: bool `[N, L]`, whether the argument is negative, if the operation has a sign.
        bicubic: bool `[N, L]`, whether a geometric operation uses the bicubic filter.
    """

    operation: jax.Array
    magnitude: jax.Array
    negative: jax.Array
    bicubic: jax.Array


def random_flip(
    key: jax.Array, images: jax.Array, probability: float, *, first_image: int | jax.Array = 0
) -> jax.Array:
    """Flips images horizontally at random.

    Args:
        key: random key.
        images: `[N, H, W, C]`, any dtype.
        probability: probability that an image is flipped.
        first_image: index of the first image in the global batch. The draws depend on it.

    Returns:
        The images, with the same shape and dtype.

    Raises:
        ValueError: the probability is not between 0 and 1.
    """
    check_probability("flip probability", probability)
    if probability == 0:
        return images

    def is_flipped(image_index: jax.Array) -> jax.Array:
        return uniform(jax.random.fold_in(key, image_index), ()) < probability

    flipped = jax.vmap(is_flipped)(first_image + jnp.arange(images.shape[0]))
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_augment(
    key: jax.Array,
    images: jax.Array,
    rand_augment: RandAugment,
    *,
    first_image: int | jax.Array = 0,
) -> jax.Array:
    """Applies RandAugment to every image of a batch.

    Args:
        key: random key.
        images: `[N, H, W, 3]`, uint8, or floats from 0 to 255, which are rounded to integers.
        rand_augment: the distribution to draw from (see `rand_augment.parse_rand_augment`).
        first_image: index of the first image in the global batch. The draws depend on it.

    Returns:
        The images, with the same shape and dtype.

    Raises:
        ValueError: the images have another dtype or shape, or `rand_augment` does not draw
            uniformly from the fifteen operations.
    """
    image_indices = first_image + jnp.arange(images.shape[0])
    draw = draw_rand_augment(key, image_indices, rand_augment)
    return apply_rand_augment(images, draw, rand_augment)


def draw_rand_augment(
    key: jax.Array, image_indices: jax.Array, rand_augment: RandAugment
) -> RandAugmentDraw:
    """Draws operations from the same distribution as `RandAugment.draw` on the host.

    Args:
        key: random key.
        image_indices: indices of the images in the global batch, int `[N]`.
        rand_augment: the distribution to draw from.

    Returns:
        The draws of the `N` images.

    Raises:
        ValueError: `rand_augment` does not draw uniformly from the fifteen operations.
    """
    _check_rand_augment(rand_augment)
    chex.assert_rank(image_indices, 1)
    layers = (rand_augment.num_layers,)

    def draw_one(image_index: jax.Array) -> RandAugmentDraw:
        number_key, normal_key = jax.random.split(jax.random.fold_in(key, image_index))
        choosing, applying, strength, sign, filtering = uniform(number_key, (5, *layers))
        is_applied = applying < rand_augment.probability
        if math.isinf(rand_augment.magnitude_std):
            magnitude = strength * rand_augment.magnitude
        else:
            deviation = jax.random.normal(normal_key, layers, jnp.float32)
            magnitude = rand_augment.magnitude + rand_augment.magnitude_std * deviation
        bicubics = [resampling == Image.Resampling.BICUBIC for resampling in _filters(rand_augment)]
        return RandAugmentDraw(
            operation=jnp.where(is_applied, index_below(len(FIFTEEN), choosing), NO_OPERATION),
            magnitude=jnp.clip(magnitude, 0, rand_augment.magnitude_max),
            negative=sign < 0.5,
            bicubic=jnp.array(bicubics)[index_below(len(bicubics), filtering)],
        )

    return jax.vmap(draw_one)(image_indices)


def apply_rand_augment(
    images: jax.Array, draw: RandAugmentDraw, rand_augment: RandAugment
) -> jax.Array:
    """Applies drawn operations, one layer after the other.

    Args:
        images: `[N, H, W, 3]`, uint8, or floats from 0 to 255, which are rounded to integers.
        draw: the draws.
        rand_augment: the distribution of the draws. It maps magnitudes to arguments.

    Returns:
        The images, with the same shape and dtype.

    Raises:
        ValueError: the images have another dtype or shape, or `rand_augment` does not draw
            uniformly from the fifteen operations.
    """
    _check_rand_augment(rand_augment)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"Invalid images for RandAugment: expected shape [N, H, W, 3], got {images.shape}."
        )
    chex.assert_equal_shape(draw)
    chex.assert_equal_shape_prefix([images, draw.operation], 1)
    dtype = images.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        images = jnp.clip(jnp.rint(images), 0, 255).astype(jnp.uint8)
    elif dtype != jnp.uint8:
        raise ValueError(
            f"Invalid images for RandAugment: expected dtype uint8 or float, got {dtype}."
        )

    def apply_layer(images: jax.Array, layer: RandAugmentDraw) -> tuple[jax.Array, None]:
        return _apply_layer(images, layer, rand_augment), None

    by_layer = jax.tree.map(lambda drawn: drawn.T, draw)
    images, _ = jax.lax.scan(apply_layer, images, by_layer)
    return images.astype(dtype)


def _apply_layer(images: jax.Array, draw: RandAugmentDraw, rand_augment: RandAugment) -> jax.Array:
    """Applies one operation to every image. The fields of `draw` are `[N]` here."""
    _, height, width, _ = images.shape

    def has_drawn(name: str) -> jax.Array:
        return draw.operation == FIFTEEN.index(name)

    def argument(name: str) -> jax.Array:
        return operation_arguments(
            name, draw.magnitude, increasing=rand_augment.increasing, negative=draw.negative
        )

    augmented = images
    for name in [name for name in COLOR if name not in COSTLY]:
        result = COLOR[name](images, argument(name))
        augmented = jnp.where(has_drawn(name)[:, None, None, None], result, augmented)
    for name in COSTLY:
        augmented = _on_chosen(augmented, has_drawn(name), COLOR[name], argument(name))

    is_geometric = jnp.zeros(images.shape[0], bool)
    matrices = jnp.zeros((images.shape[0], 6), jnp.float32)
    for name, matrices_of in GEOMETRIC.items():
        is_geometric |= has_drawn(name)
        of_name = matrices_of(argument(name), height, width)
        matrices = jnp.where(has_drawn(name)[:, None], of_name, matrices)

    def transform(images, matrices, bicubic):
        return affine(images, matrices, bicubic, _largest_stretch(rand_augment))

    return _on_chosen(augmented, is_geometric, transform, matrices, draw.bicubic)


def operation_arguments(
    name: str, magnitude: jax.Array, *, increasing: bool, negative: jax.Array
) -> jax.Array:
    """Returns the argument of an operation for each of `N` magnitudes, float32 `[N]`.

    This is `rand_augment.operation_argument` for arrays. Operations without an argument get 0.
    """
    sign = jnp.where(negative, -1.0, 1.0)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        if increasing:
            return jnp.maximum(0.1, 1 + sign * 0.09 * magnitude)
        return 0.18 * magnitude + 0.1
    if name == "Rotate":
        return sign * 3 * magnitude
    if name in ("ShearX", "ShearY"):
        return sign * 0.03 * magnitude
    if name in ("TranslateX", "TranslateY"):
        return sign * 0.045 * magnitude
    if name == "Posterize":
        bits = _whole(0.4 * magnitude)
        return 4 - bits if increasing else bits
    if name == "Solarize":
        threshold = jnp.minimum(256, _whole(25.6 * magnitude))
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return jnp.minimum(128, _whole(11 * magnitude))
    return jnp.zeros_like(magnitude)


def _whole(number: jax.Array) -> jax.Array:
    # Without the small summand, float32 rounding could turn an exact 99 into 98.
    return jnp.floor(number + 1e-4)


def _on_chosen(
    images: jax.Array, chosen: jax.Array, operation: Callable[..., jax.Array], *arguments: jax.Array
) -> jax.Array:
    """Applies an operation to the images where `chosen` `[N]` is True, in chunks."""
    count = images.shape[0]
    chunk = min(CHUNK, count)
    chosen_first = jnp.argsort(~chosen, stable=True)
    # The last chunk may extend past the batch. Its extra entries are not written back.
    order = jnp.concatenate([chosen_first, jnp.full(chunk, count, chosen_first.dtype)])

    def apply_to_chunk(i: jax.Array, images: jax.Array) -> jax.Array:
        indices = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
        part, is_chosen, *part_arguments = (
            array.at[indices].get(mode="clip") for array in (images, chosen, *arguments)
        )
        result = operation(part, *part_arguments)
        result = jnp.where(is_chosen[:, None, None, None], result, part)
        return images.at[indices].set(result, mode="drop")

    chunks = (jnp.sum(chosen) + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, apply_to_chunk, images)


def _largest_stretch(rand_augment: RandAugment) -> float:
    """Returns a bound of |a| + |b| and |d| + |e| over all drawn matrices (see `affine`)."""
    return max(math.sqrt(2), 1 + 0.03 * rand_augment.magnitude_max)


def _filters(rand_augment: RandAugment) -> tuple[Image.Resampling, ...]:
    filters = rand_augment.resamplings
    known = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    if not filters or not set(filters) <= set(known):
        raise ValueError(
            "Invalid filters for RandAugment on the device: expected bilinear or bicubic, got "
            f"{filters}."
        )
    return filters


def _check_rand_augment(rand_augment: RandAugment) -> None:
    if rand_augment.operations != FIFTEEN or rand_augment.weights is not None:
        raise ValueError(
            "Invalid RandAugment on the device: expected a uniform draw from the fifteen "
            f"operations, got the set {', '.join(rand_augment.operations)}. Run named sets on the "
            "host."
        )
    check_probability("RandAugment probability", rand_augment.probability)
    _filters(rand_augment)
