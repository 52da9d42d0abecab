"""RandAugment's fifteen operations on the device, for batches with one argument per image.

Each operation corresponds to the one in `fastervit_jax.augmentation.operations` and takes the same
argument. Images are uint8 `[N, H, W, 3]`, arguments are float32 `[N]`.

Every pixel differs from Pillow's by at most one level. The only exception is the edge of the filled
region. If the source of a pixel lies on the border of the image up to rounding, one implementation
may fill the pixel and the other may not.

Accelerators are slow at gathering single pixels. Lookups in tables of 256 levels and interpolation
(see `affine`) are therefore matrix products.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

# Geometric operations fill with ImageNet's mean color: 255 times the mean, rounded.
FILL = (124, 116, 104)

# Output pixels are interpolated in square tiles with this side. It is large enough for matrix units
# and small enough that most of a tile's source pixels are needed.
TILE = 16


# --- levels ---------------------------------------------------------------------------------------


def invert(images: jax.Array, _: jax.Array) -> jax.Array:
    """Replaces level v by 255 - v."""
    return 255 - images


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts levels of at least `threshold` (0 to 256)."""
    return jnp.where(images < _over_pixels(threshold), images, 255 - images)


def solarize_add(images: jax.Array, amount: jax.Array) -> jax.Array:
    """Adds `amount` (0 to 128) to levels below 128. The result is at most 255."""
    brighter = jnp.minimum(images + _over_pixels(amount), 255).astype(jnp.uint8)
    return jnp.where(images < 128, brighter, images)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` of every level. With 0 or fewer bits the image is black."""
    dropped = 8 - jnp.clip(bits.astype(jnp.int32), 0, 8)
    mask = (255 << dropped) & 255
    return images & _over_pixels(mask).astype(jnp.uint8)


def auto_contrast(images: jax.Array, _: jax.Array) -> jax.Array:
    """Stretches the levels of every channel to 0 ... 255."""
    low = jnp.min(images, axis=(1, 2), keepdims=True).astype(jnp.float32)
    high = jnp.max(images, axis=(1, 2), keepdims=True).astype(jnp.float32)
    distance = jnp.maximum(high - low, 1)
    # Adding 0.5 keeps the quotient away from whole numbers, where rounding could change the level.
    stretched = jnp.floor((255 * (images - low) + 0.5) / distance)
    return jnp.where(high > low, stretched, images).astype(jnp.uint8)


def equalize(images: jax.Array, _: jax.Array) -> jax.Array:
    """Equalizes the histogram of every channel (`ImageOps.equalize`)."""
    n, height, width, channels = images.shape
    levels = jnp.moveaxis(images.reshape(n, height * width, channels), 2, 1)
    # A level 16 i + j becomes one-hot vectors of i and j. Counting and lookup are then matrix
    # products of small integers, which are exact in bfloat16 with float32 sums.
    sixteen = jnp.arange(16, dtype=jnp.uint8)
    upper = ((levels >> 4)[..., None] == sixteen).astype(jnp.bfloat16)
    lower = ((levels & 15)[..., None] == sixteen).astype(jnp.bfloat16)
    counts = jnp.einsum("ncpi,ncpj->ncij", upper, lower, preferred_element_type=jnp.float32)
    counts = counts.reshape(n, channels, 256).astype(jnp.int32)

    below = jnp.cumsum(counts, axis=-1) - counts
    brightest = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1)
    step = jnp.take_along_axis(below, brightest[..., None], axis=-1) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    # The channel stays unchanged if too few pixels are below its brightest level.
    table = jnp.where(step > 0, table, jnp.arange(256))

    table = table.reshape(n, channels, 16, 16).astype(jnp.bfloat16)
    by_upper = jnp.einsum("ncpj,ncij->ncpi", lower, table, preferred_element_type=jnp.float32)
    equalized = jnp.sum(by_upper * upper, axis=-1).astype(jnp.uint8)
    return jnp.moveaxis(equalized, 1, 2).reshape(images.shape)


# --- blends ---------------------------------------------------------------------------------------


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black: 0 is black, 1 is the image."""
    return _blend(jnp.zeros_like(images), images, factor)


def color(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the gray image: 0 is gray, 1 is the image, above 1 is more colorful."""
    return _blend(_gray(images), images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the image's mean gray level: 0 is uniform gray, 1 is the image."""
    gray = _gray(images)
    total = jnp.sum(gray, axis=(1, 2), keepdims=True)
    pixels = gray[0].size
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean, images, factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the smoothed image: 0 is smooth, 1 is the image, above 1 is sharper."""
    levels = images.astype(jnp.int32)
    height, width = images.shape[1:3]
    if height < 3 or width < 3:
        return images
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    squares = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    # Pillow's SMOOTH filter weights the center by 5 and its eight neighbors by 1. It leaves the
    # border unchanged.
    smooth = (2 * (squares + 4 * levels[:, 1:-1, 1:-1]) + 13) // 26
    smooth = levels.at[:, 1:-1, 1:-1].set(smooth)
    return _blend(smooth, images, factor)


def _blend(degenerate: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Interpolates from `degenerate` (0) to `images` (1), clipped, as Pillow's `Image.blend`."""
    degenerate = degenerate.astype(jnp.float32)
    blended = degenerate + _over_pixels(factor) * (images.astype(jnp.float32) - degenerate)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _gray(images: jax.Array) -> jax.Array:
    """Converts to gray levels as Pillow's mode "L", int32 `[N, H, W, 1]`."""
    weights = jnp.array([19595, 38470, 7471], jnp.int32)
    weighted = jnp.sum(images.astype(jnp.int32) * weights, axis=-1, keepdims=True)
    return (weighted + 0x8000) >> 16


def _over_pixels(argument: jax.Array) -> jax.Array:
    return argument[:, None, None, None]


# --- geometry -------------------------------------------------------------------------------------


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Returns matrices that rotate counterclockwise about the center, `[N, 6]` (see `affine`)."""
    cosine, sine = jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
    x, y = width / 2, height / 2
    return _matrices(
        cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y
    )


def shear_x(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Returns matrices that shift every row horizontally by `factor` times its y coordinate."""
    return _matrices(1, factor, 0, 0, 1, 0 * factor)


def shear_y(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Returns matrices that shift every column vertically by `factor` times its x coordinate."""
    return _matrices(1, 0, 0, factor, 1, 0 * factor)


def translation_x(share: jax.Array, height: int, width: int) -> jax.Array:
    """Returns matrices that shift horizontally by `share` times the width."""
    return _matrices(1, 0, share * width, 0, 1, 0)


def translation_y(share: jax.Array, height: int, width: int) -> jax.Array:
    """Returns matrices that shift vertically by `share` times the height."""
    return _matrices(1, 0, 0, 0, 1, share * height)


def _matrices(*entries: jax.Array | float) -> jax.Array:
    return jnp.stack(jnp.broadcast_arrays(*entries), axis=-1).astype(jnp.float32)


def affine(
    images: jax.Array, matrices: jax.Array, bicubic: jax.Array, largest_stretch: float
) -> jax.Array:
    """Transforms images by affine maps, as Pillow's `Image.transform` does.

    The output pixel in column x and row y is the input pixel at (a x + b y + c, d x + e y + f). The
    center of the first pixel has the coordinates (0.5, 0.5). A pixel whose source lies outside the
    image gets the color `FILL`.

    Each tile of output pixels is interpolated by matrix products. The source of a tile is a small
    rectangle, and each pixel is a weighted sum over its columns, then over its rows.

    Args:
        images: uint8 `[N, H, W, 3]`.
        matrices: a, b, c, d, e, f of each image, float32 `[N, 6]`.
        bicubic: bool `[N]`. True selects Pillow's bicubic filter, False the bilinear filter.
        largest_stretch: upper bound of |a| + |b| and of |d| + |e|. It limits the size of a tile's
            source.

    Returns:
        The transformed images, uint8 `[N, H, W, 3]`.
    """
    chex.assert_rank(images, 4)
    chex.assert_shape(matrices, (len(images), 6))
    chex.assert_shape(bicubic, (len(images),))
    _, height, width, channels = images.shape
    tile_rows, tile_columns = math.ceil(height / TILE), math.ceil(width / TILE)
    y, x = jnp.mgrid[:TILE, :TILE] + 0.5
    # The filter needs two pixels outside the image. They repeat the border.
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    reach = math.ceil((TILE - 1) * largest_stretch) + 5
    source_height, source_width = min(reach, height + 4), min(reach, width + 4)

    def draw_tile(image, matrix, is_bicubic, top, left):
        a, b, c, d, e, f = matrix
        source_x = (a * (left + x) + b * (top + y) + c).ravel()
        source_y = (d * (left + x) + e * (top + y) + f).ravel()
        is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

        # From here on, coordinates refer to the padded image and integers are pixel centers.
        source_x, source_y = source_x + 1.5, source_y + 1.5
        first_column = _first_of_source(source_x, width + 4 - source_width)
        first_row = _first_of_source(source_y, height + 4 - source_height)
        source = jax.lax.dynamic_slice(
            image, (first_row, first_column, 0), (source_height, source_width, channels)
        ).astype(jnp.float32)
        of_columns = _filter_weights(
            source_x[:, None] - first_column - jnp.arange(source_width), is_bicubic
        )
        of_rows = _filter_weights(
            source_y[:, None] - first_row - jnp.arange(source_height), is_bicubic
        )
        between_columns = jnp.einsum(
            "pu,vuc->pvc", of_columns, source, precision=jax.lax.Precision.HIGHEST
        )
        levels = jnp.sum(of_rows[..., None] * between_columns, axis=1)
        # Pillow truncates. The small summand keeps exact levels from being rounded down.
        levels = jnp.clip(levels + 1e-3, 0, 255).astype(jnp.uint8)
        return jnp.where(is_inside[:, None], levels, jnp.array(FILL, jnp.uint8))

    def draw_image(image, matrix, is_bicubic):
        tops, lefts = TILE * jnp.mgrid[:tile_rows, :tile_columns].reshape(2, -1)
        tiles = jax.vmap(draw_tile, in_axes=(None, None, None, 0, 0))(
            image, matrix, is_bicubic, tops, lefts
        )
        tiles = tiles.reshape(tile_rows, tile_columns, TILE, TILE, channels).swapaxes(1, 2)
        drawn = tiles.reshape(tile_rows * TILE, tile_columns * TILE, channels)
        return drawn[:height, :width]

    return jax.vmap(draw_image)(padded, matrices, bicubic)


def _first_of_source(positions: jax.Array, last: int) -> jax.Array:
    """Returns the first row or column that a tile needs, at most `last`."""
    return jnp.clip(jnp.floor(jnp.min(positions)).astype(jnp.int32) - 1, 0, last)


def _filter_weights(distance: jax.Array, is_bicubic: jax.Array) -> jax.Array:
    """Returns the weights of Pillow's filters for transforms. The bicubic filter has a = -1."""
    t = jnp.abs(distance)
    bilinear = jnp.maximum(1 - t, 0)
    near, far = (t - 2) * t * t + 1, ((5 - t) * t - 8) * t + 4
    bicubic = jnp.where(t < 1, near, jnp.where(t < 2, far, 0))
    return jnp.where(is_bicubic, bicubic, bilinear)


# The keys are the names that `fastervit_jax.augmentation.rand_augment` draws.
COLOR: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
GEOMETRIC: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {
    "Rotate": rotation,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translation_x,
    "TranslateY": translation_y,
}
