"""Flip and RandAugment on the device, inside the jitted step, image by image.

`rand_augment.RandAugment` says what is drawn; here it is drawn with JAX's random numbers and done
with `device_operations`. The host is then left with decoding and cropping.

A draw depends on the key and on the image's index in the global batch alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from PIL import Image

from fastervit_jax.augmentation.device_operations import COLOUR, GEOMETRIC, affine
from fastervit_jax.augmentation.rand_augment import FIFTEEN, RandAugment
from fastervit_jax.augmentation.random_draws import check_probability, index_below, uniform

# Most operations cost less than picking out the few images that drew them: they are done on the
# whole batch, in one pass, and kept where drawn. These, and the geometric ones, cost more, and are
# done on the images that drew them alone, so many at a time, as often as it takes.
COSTLY = ("Equalize", "Sharpness")
CHUNK = 8

NO_OPERATION = -1


class RandAugmentDraw(NamedTuple):
    """What is done to `N` images, in `L` layers.

    Attributes:
      operation: int32 ``[N, L]``: an index into `FIFTEEN`, or `NO_OPERATION`.
      magnitude: float32 ``[N, L]``.
      negative: bool ``[N, L]``: the sign where the operation has one.
      bicubic: bool ``[N, L]``: the filter where the operation is geometric, else bilinear.
    """

    operation: jax.Array
    magnitude: jax.Array
    negative: jax.Array
    bicubic: jax.Array


def random_flip(
    key: jax.Array, images: jax.Array, probability: float, *, first_image: int | jax.Array = 0
) -> jax.Array:
    """Mirrors some images, left to right.

    Args:
      key: random key.
      images: ``[N, H, W, C]``, any dtype.
      probability: probability that an image is mirrored.
      first_image: index of the first image in the global batch: the draws depend on it.

    Returns:
      The images, shape and dtype as they came.

    Raises:
      ValueError: if the probability does not lie between 0 and 1.
    """
    check_probability("The flip probability", probability)
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
      images: ``[N, H, W, 3]``: uint8, or floats from 0 to 255, which are rounded to whole levels.
      rand_augment: what to draw, as `rand_augment.parse_rand_augment` reads it.
      first_image: index of the first image in the global batch: the draws depend on it.

    Returns:
      The images, shape and dtype as they came.

    Raises:
      ValueError: for images of another dtype or shape, or a RandAugment that is not drawn evenly
        from the fifteen operations.
    """
    image_indices = first_image + jnp.arange(images.shape[0])
    draw = draw_rand_augment(key, image_indices, rand_augment)
    return apply_rand_augment(images, draw, rand_augment)


def draw_rand_augment(
    key: jax.Array, image_indices: jax.Array, rand_augment: RandAugment
) -> RandAugmentDraw:
    """Draws operations as `RandAugment.draw` does on the host.

    Args:
      key: random key.
      image_indices: the images' indices in the global batch, int ``[N]``.
      rand_augment: what to draw.

    Returns:
      The draws of the `N` images.

    Raises:
      ValueError: for a RandAugment that is not drawn evenly from the fifteen operations.
    """
    _check_rand_augment(rand_augment)
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
    """Applies operations as drawn, every layer to the result of the one before.

    Args:
      images: ``[N, H, W, 3]``: uint8, or floats from 0 to 255, which are rounded to whole levels.
      draw: what to do.
      rand_augment: what it was drawn from; it translates magnitudes into arguments.

    Returns:
      The images, shape and dtype as they came.

    Raises:
      ValueError: for images of another dtype or shape, or a RandAugment that is not drawn evenly
        from the fifteen operations.
    """
    _check_rand_augment(rand_augment)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"RandAugment takes RGB images [N, H, W, 3]; got {images.shape}.")
    dtype = images.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        images = jnp.clip(jnp.rint(images), 0, 255).astype(jnp.uint8)
    elif dtype != jnp.uint8:
        raise ValueError(f"RandAugment takes images of uint8 or floats; got {dtype}.")

    def apply_layer(images: jax.Array, layer: RandAugmentDraw) -> tuple[jax.Array, None]:
        return _apply_layer(images, layer, rand_augment), None

    by_layer = jax.tree.map(lambda drawn: drawn.T, draw)
    images, _ = jax.lax.scan(apply_layer, images, by_layer)
    return images.astype(dtype)


def _apply_layer(images: jax.Array, draw: RandAugmentDraw, rand_augment: RandAugment) -> jax.Array:
    """One operation for every image; the fields of the draw are [N] here."""
    _, height, width, _ = images.shape

    def has_drawn(name: str) -> jax.Array:
        return draw.operation == FIFTEEN.index(name)

    def argument(name: str) -> jax.Array:
        return operation_arguments(
            name, draw.magnitude, increasing=rand_augment.increasing, negative=draw.negative
        )

    augmented = images
    for name in [name for name in COLOUR if name not in COSTLY]:
        result = COLOUR[name](images, argument(name))
        augmented = jnp.where(has_drawn(name)[:, None, None, None], result, augmented)
    for name in COSTLY:
        augmented = _on_chosen(augmented, has_drawn(name), COLOUR[name], argument(name))

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
    """What an operation is given at each of `N` magnitudes, float32 ``[N]``.

    `rand_augment.operation_argument` for arrays; 0 for operations that take nothing.
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
    # The addend outweighs float32's roundings, which must not turn a whole 99 into 98.
    return jnp.floor(number + 1e-4)


def _on_chosen(
    images: jax.Array, chosen: jax.Array, operation: Callable[..., jax.Array], *arguments: jax.Array
) -> jax.Array:
    """Applies an operation to the chosen images [N], a chunk at a time, and leaves the others."""
    count = images.shape[0]
    chunk = min(CHUNK, count)
    chosen_first = jnp.argsort(~chosen, stable=True)
    # The last chunk may reach beyond the batch; what lies there is not written back.
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
    """A bound for |a| + |b| over all rows of matrices that can be drawn (see `affine`)."""
    return max(math.sqrt(2), 1 + 0.03 * rand_augment.magnitude_max)


def _filters(rand_augment: RandAugment) -> tuple[Image.Resampling, ...]:
    filters = rand_augment.resamplings
    known = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    if not filters or not set(filters) <= set(known):
        raise ValueError(
            f"On the device RandAugment interpolates bilinearly or bicubically, not by {filters}."
        )
    return filters


def _check_rand_augment(rand_augment: RandAugment) -> None:
    if rand_augment.operations != FIFTEEN or rand_augment.weights is not None:
        raise ValueError(
            "On the device RandAugment draws evenly from the fifteen operations; for a named set "
            f"(here {', '.join(rand_augment.operations)}) run it on the host."
        )
    check_probability("RandAugment's probability", rand_augment.probability)
    _filters(rand_augment)
