"""RandAugment's image operations on the host, as timm 0.9.16 applies them with Pillow.

Every function takes an RGB image and returns an RGB image of the same size. The functions follow
those in `timm.data.auto_augment.NAME_TO_OP`.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# Geometric operations fill with ImageNet's mean color: 255 times the mean, rounded.
FILL = (124, 116, 104)


class Operation(NamedTuple):
    """One operation with its argument.

    Attributes:
        name: a key of `GEOMETRIC` or `COLOR`.
        argument: argument of the operation (an angle, a factor, ...); None if it has none.
        resampling: filter of a geometric operation; None for other operations.
    """

    name: str
    argument: float | None = None
    resampling: Image.Resampling | None = None


def apply_operation(image: Image.Image, operation: Operation) -> Image.Image:
    """Applies an operation to an RGB image."""
    if operation.name in GEOMETRIC:
        return GEOMETRIC[operation.name](image, operation.argument, operation.resampling)
    if operation.argument is None:
        return COLOR[operation.name](image)
    return COLOR[operation.name](image, operation.argument)


def _affine(
    image: Image.Image, matrix: tuple[float, ...], resampling: Image.Resampling
) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=resampling, fillcolor=FILL
    )


def rotate(image: Image.Image, degrees: float, resampling: Image.Resampling) -> Image.Image:
    """Rotates counterclockwise about the center."""
    return image.rotate(degrees, resample=resampling, fillcolor=FILL)


def shear_x(image: Image.Image, factor: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts every row horizontally by `factor` times its y coordinate."""
    return _affine(image, (1, factor, 0, 0, 1, 0), resampling)


def shear_y(image: Image.Image, factor: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts every column vertically by `factor` times its x coordinate."""
    return _affine(image, (1, 0, 0, factor, 1, 0), resampling)


def translate_x(image: Image.Image, share: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts horizontally by `share` times the width."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), resampling)


def translate_y(image: Image.Image, share: float, resampling: Image.Resampling) -> Image.Image:
    """Shifts vertically by `share` times the height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), resampling)


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Adds `amount` (0 to 128) to levels below 128. The result is at most 255."""
    levels = [min(255, level + int(amount)) if level < 128 else level for level in range(256)]
    return image.point(levels * 3)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keeps the highest `bits` (0 to 8) of every level. With 0 bits the image is black.

    This is how Pillow's `posterize` worked at the time of timm 0.9.16. Newer versions of Pillow
    reject 0 bits, which the recipe can draw.
    """
    mask = ~(2 ** (8 - int(bits)) - 1)
    return image.point([level & mask for level in range(256)] * 3)


def solarize(image: Image.Image, threshold: float) -> Image.Image:
    """Inverts levels of at least `threshold` (0 to 256)."""
    return ImageOps.solarize(image, int(threshold))


def color(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the gray image: 0 is gray, 1 is the image, above 1 is more colorful."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the image's mean gray level: 0 is uniform gray, 1 is the image."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with black: 0 is black, 1 is the image."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Blends with the smoothed image: 0 is smooth, 1 is the image, above 1 is sharper."""
    return ImageEnhance.Sharpness(image).enhance(factor)


def desaturate(image: Image.Image, amount: float) -> Image.Image:
    """Removes color: 0 is the image, 1 is gray."""
    return color(image, min(1.0, max(0.0, 1.0 - amount)))


def gaussian_blur(image: Image.Image, radius: float) -> Image.Image:
    """Applies a Gaussian blur with a radius of `radius` pixels."""
    return image.filter(ImageFilter.GaussianBlur(radius=radius))


GEOMETRIC: dict[str, Callable[..., Image.Image]] = {
    "Rotate": rotate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}
COLOR: dict[str, Callable[..., Image.Image]] = {
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
