"""RandAugment's image operations at given arguments, as timm 0.9.16 performs them with Pillow.

Every function takes an RGB image and returns one of the same size. Follows the functions of
`timm.data.auto_augment` that its `NAME_TO_OP` names.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# ImageNet's mean colour, 255 times the mean rounded: what geometric operations fill with.
FILL = (124, 116, 104)


class Operation(NamedTuple):
    """One operation, decided.

    Attributes:
      name: a key of `OPERATIONS`.
      argument: what the operation takes (an angle, a factor, ...); None where it takes none.
      resampling: the filter of a geometric operation; None for the others.
    """

    name: str
    argument: float | None = None
    resampling: Image.Resampling | None = None


def apply_operation(image: Image.Image, operation: Operation) -> Image.Image:
    """Performs an operation on an RGB image."""
    if operation.name in GEOMETRIC:
        return GEOMETRIC[operation.name](image, operation.argument, operation.resampling)
    if operation.argument is None:
        return COLOUR[operation.name](image)
    return COLOUR[operation.name](image, operation.argument)


def _affine(
    image: Image.Image, matrix: tuple[float, ...], resampling: Image.Resampling
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=FILL
    )


def rotate(image: Image.Image, degrees: float, resampling: Image.Resampling) -> Image.Image:
    """Turns counter-clockwise about the centre."""
    return image.rotate(degrees, resample=resampling, fillcolor=FILL)


def shear_x(image: Image.Image, factor: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts every row by `factor` times its height in the image."""
    return _affine(image, (1, factor, 0, 0, 1, 0), resampling)


def shear_y(image: Image.Image, factor: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts every column by `factor` times its place in the image."""
    return _affine(image, (1, 0, 0, factor, 1, 0), resampling)


def translate_x(image: Image.Image, share: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts sideways by a share of the width."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), resampling)


def translate_y(image: Image.Image, share: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts up or down by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), resampling)


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Adds `amount` (0 to 128) to the levels below 128, up to 255."""
    levels = [min(255, level + int(amount)) if level < 128 else level for level in range(256)]
    return image.point(levels * 3)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keeps the highest `bits` (0 to 8) of every level; 0 leaves a black image.

    As Pillow's `posterize` did when timm 0.9.16 was made; by now it refuses 0, which the recipe
    draws.
    """
    mask = ~(2 ** (8 - int(bits)) - 1)
    return image.point([level & mask for level in range(256)] * 3)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts the levels from `threshold` (0 to 256) on."""
    return ImageOps.solarize(image, int(threshold))


def color(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the grey image: 0 is grey, 1 the image, more is more colourful."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the image's mean grey: 0 is flat, 1 the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the smoothed image: 0 is smooth, 1 the image, more is sharper."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def desaturate(image: Image.Image, amount: float) -> Image.Image:
    """Removes colour: 0 is the image, 1 is grey."""
    return color(image, min(1.0, max(0.0, 1.0 - amount)))


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Blurs by `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius=radius))


GEOMETRIC: dict[str, Callable[..., Image.Image]] = {
    "Rotate": rotate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}
COLOUR: dict[str, Callable[..., Image.Image]] = {
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "Desaturate": desaturate,
    "GaussianBlur": gaussian_blur,
}
