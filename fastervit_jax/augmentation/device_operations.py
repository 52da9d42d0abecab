"""RandAugment's fifteen operations on the device, for a batch with an argument for every image.

The counterpart of `fastervit_jax.augmentation.operations`, operation by operation and with the same
arguments: images are uint8 ``[N, H, W, 3]``, arguments float32 ``[N]``. Every pixel is within one
level of what Pillow gives, up to the edge of the filled region: there the two may disagree on
which side a pixel lies where its source falls on the image's border to within a rounding.

Nothing here gathers single pixels, which accelerators are slow at. Look-ups in tables of 256 levels
are matrix products, and so is interpolation (see `affine`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# ImageNet's mean colour, 255 times the mean rounded: what geometric operations fill with.
FILL = (124, 116, 104)

# Output pixels are interpolated in tiles of this side: large enough for matrix units, small enough
# that most of a tile's source is of use.
TILE = 16


# --- levels ---------------------------------------------------------------------------------------


def invert(images: jax.Array, _: jax.Array) -> jax.Array:
    """Turns level v into 255 - v."""
    return 255 - images


def solarize(images: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the levels from `threshold` (0 to 256) on."""
    return jnp.where(images < _over_pixels(threshold), images, 255 - images)


def solarize_add(images: jax.Array, amount: jax.Array) -> jax.Array:
    """Adds `amount` (0 to 128) to the levels below 128, up to 255."""
    brighter = jnp.minimum(images + _over_pixels(amount), 255).astype(jnp.uint8)
    return jnp.where(images < 128, brighter, images)


def posterize(images: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits` of every level; with 0 or less the image is black."""
    dropped = 8 - jnp.clip(bits.astype(jnp.int32), 0, 8)
    mask = (255 << dropped) & 255
    return images & _over_pixels(mask).astype(jnp.uint8)


def auto_contrast(images: jax.Array, _: jax.Array) -> jax.Array:
    """Stretches the levels of every channel to 0 ... 255."""
    low = jnp.min(images, axis=(1, 2), keepdims=True).astype(jnp.float32)
    high = jnp.max(images, axis=(1, 2), keepdims=True).astype(jnp.float32)
    distance = jnp.maximum(high - low, 1)
    # The half keeps the quotient of whole numbers off the whole levels, where a rounding decides.
    stretched = jnp.floor((255 * (images - low) + 0.5) / distance)
    return jnp.where(high > low, stretched, images).astype(jnp.uint8)


def equalize(images: jax.Array, _: jax.Array) -> jax.Array:
    """Maps the levels of every channel so that they are used evenly (``ImageOps.equalize``)."""
    n, height, width, channels = images.shape
    levels = jnp.moveaxis(images.reshape(n, height * width, channels), 2, 1)
    # Level 16 i + j, as one-hot vectors of i and j: counting and looking up become matrix products
    # of small whole numbers, exact in bfloat16 with float32 sums.
    sixteen = jnp.arange(16, dtype=jnp.uint8)
    upper = ((levels >> 4)[..., None] == sixteen).astype(jnp.bfloat16)
    lower = ((levels & 15)[..., None] == sixteen).astype(jnp.bfloat16)
    counts = jnp.einsum("ncpi,ncpj->ncij", upper, lower, preferred_element_type=jnp.float32)
    counts = counts.reshape(n, channels, 256).astype(jnp.int32)

    below = jnp.cumsum(counts, axis=-1) - counts
    brightest = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1)
    step = jnp.take_along_axis(below, brightest[..., None], axis=-1) // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    # Too few pixels above the darkest level: the channel stays.
    table = jnp.where(step > 0, table, jnp.arange(256))

    table = table.reshape(n, channels, 16, 16).astype(jnp.bfloat16)
    by_upper = jnp.einsum("ncpj,ncij->ncpi", lower, table, preferred_element_type=jnp.float32)
    equalized = jnp.sum(by_upper * upper, axis=-1).astype(jnp.uint8)
    return jnp.moveaxis(equalized, 1, 2).reshape(images.shape)


# --- blends ---------------------------------------------------------------------------------------


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with black: 0 is black, 1 the image."""
    return _blend(jnp.zeros_like(images), images, factor)


def color(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image: 0 is grey, 1 the image, more is more colourful."""
    return _blend(_grey(images), images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the image's mean grey: 0 is flat, 1 the image."""
    grey = _grey(images)
    total = jnp.sum(grey, axis=(1, 2), keepdims=True)
    pixels = grey[0].size
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean, images, factor)


def sharpness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the smoothed image: 0 is smooth, 1 the image, more is sharper."""
    levels = images.astype(jnp.int32)
    height, width = images.shape[1:3]
    if height < 3 or width < 3:
        return images
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    squares = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    # Pillow's SMOOTH weighs the nine neighbours 1, the middle 5, and leaves the border.
    smooth = (2 * (squares + 4 * levels[:, 1:-1, 1:-1]) + 13) // 26
    smooth = levels.at[:, 1:-1, 1:-1].set(smooth)
    return _blend(smooth, images, factor)


def _blend(degenerate: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's ``Image.blend``: on the line from one image (0) through the other (1), cut off."""
    degenerate = degenerate.astype(jnp.float32)
    blended = degenerate + _over_pixels(factor) * (images.astype(jnp.float32) - degenerate)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _grey(images: jax.Array) -> jax.Array:
    """Pillow's conversion to "L", int32 [N, H, W, 1]."""
    weights = jnp.array([19595, 38470, 7471], jnp.int32)
    weighted = jnp.sum(images.astype(jnp.int32) * weights, axis=-1, keepdims=True)
    return (weighted + 0x8000) >> 16


def _over_pixels(argument: jax.Array) -> jax.Array:
    return argument[:, None, None, None]


# --- geometry -------------------------------------------------------------------------------------


def rotation(degrees: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices that turn an image counter-clockwise about its centre, ``[N, 6]`` (see `affine`)."""
    cosine, sine = jnp.cos(jnp.radians(degrees)), jnp.sin(jnp.radians(degrees))
    x, y = width / 2, height / 2
    return _matrices(
        cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y
    )


def shear_x(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices that shift every row by `factor` times its height in the image."""
    return _matrices(1, factor, 0, 0, 1, 0 * factor)


def shear_y(factor: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices that shift every column by `factor` times its place in the image."""
    return _matrices(1, 0, 0, factor, 1, 0 * factor)


def translation_x(share: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices that shift sideways by a share of the width."""
    return _matrices(1, 0, share * width, 0, 1, 0)


def translation_y(share: jax.Array, height: int, width: int) -> jax.Array:
    """Matrices that shift up or down by a share of the height."""
    return _matrices(1, 0, 0, 0, 1, share * height)


def _matrices(*entries: jax.Array | float) -> jax.Array:
    return jnp.stack(jnp.broadcast_arrays(*entries), axis=-1).astype(jnp.float32)


def affine(
    images: jax.Array, matrices: jax.Array, bicubic: jax.Array, largest_stretch: float
) -> jax.Array:
    """Redraws images through affine maps, as Pillow's ``Image.transform``.

    The pixel at column x and row y comes from (a x + b y + c, d x + e y + f), pixel centres being
    at halves; where that lies outside the image it gets the colour `FILL`.

    Interpolation is a matrix product for every tile of output pixels: the tile's source is a small
    rectangle, and each pixel a weighted sum of its columns, then of its rows.

    Args:
      images: uint8 ``[N, H, W, 3]``.
      matrices: a, b, c, d, e, f of each image, float32 ``[N, 6]``.
      bicubic: bool ``[N]``: interpolate by Pillow's bicubic filter, not by its bilinear one.
      largest_stretch: no |a| + |b| and no |d| + |e| is larger; it bounds a tile's source.

    Returns:
      The images, uint8 ``[N, H, W, 3]``.
    """
    _, height, width, channels = images.shape
    tile_rows, tile_columns = math.ceil(height / TILE), math.ceil(width / TILE)
    y, x = jnp.mgrid[:TILE, :TILE] + 0.5
    # The filter reaches two pixels beyond the image, whose border counts on.
    padded = jnp.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    reach = math.ceil((TILE - 1) * largest_stretch) + 5
    source_height, source_width = min(reach, height + 4), min(reach, width + 4)

    def draw_tile(image, matrix, is_bicubic, top, left):
        a, b, c, d, e, f = matrix
        source_x = (a * (left + x) + b * (top + y) + c).ravel()
        source_y = (d * (left + x) + e * (top + y) + f).ravel()
        is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

        # From here on in the padded image's pixels, counted from their centres.
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
        # Pillow cuts the fraction off; the small addend keeps whole levels whole.
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
    """The first row or column that a tile's pixels need; `last` is the last one to start from."""
    return jnp.clip(jnp.floor(jnp.min(positions)).astype(jnp.int32) - 1, 0, last)


def _filter_weights(distance: jax.Array, is_bicubic: jax.Array) -> jax.Array:
    """Pillow's interpolation filters for transforms; the bicubic one has a = -1."""
    t = jnp.abs(distance)
    bilinear = jnp.maximum(1 - t, 0)
    near, far = (t - 2) * t * t + 1, ((5 - t) * t - 8) * t + 4
    bicubic = jnp.where(t < 1, near, jnp.where(t < 2, far, 0))
    return jnp.where(is_bicubic, bicubic, bilinear)


# By the names that `fastervit_jax.augmentation.rand_augment` draws.
COLOUR: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
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
