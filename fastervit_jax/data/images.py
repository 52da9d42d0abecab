"""From encoded bytes to the network's uint8 pixels, as the reference (timm over Pillow) makes them.

Pixels are Pillow's own: decoded at full size (JPEG's draft mode would change them), resized with
Pillow's antialiased filters, rounded to uint8 before anything else. EXIF orientation is ignored, as
timm ignores it.
"""

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

CropMode = Literal["center", "squash"]
Resolution = int | tuple[int, int]

# What Pillow may meet in a photograph's place. Left out on purpose: formats that start other
# programs (EPS runs Ghostscript) or hold no photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Twice Pillow's warning level, where Pillow itself refuses to decode. The same bound serves for
# images that are small in the file but huge once scaled (1 × 20,000 pixels).
_MAX_PIXELS = 178_956_970


class DamagedImageError(ValueError):
    """Bytes that cannot be decoded to an image; the message says why, callers add which."""


def height_and_width(resolution: Resolution) -> tuple[int, int]:
    """`224` → `(224, 224)`; `(height, width)` stays. Raises ValueError for anything else."""
    sides = tuple(resolution) if isinstance(resolution, list | tuple) else (resolution,) * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f"resolution must be a positive integer or (height, width), not {resolution!r}."
        )
    return sides


def decode_rgb(encoded: bytes) -> Image.Image:
    """Encoded bytes → a fully decoded RGB image at its own size.

    Greyscale is repeated, CMYK and palettes converted, alpha dropped, all by Pillow's `convert`.

    Raises:
      DamagedImageError: the bytes are empty, truncated, no image, or decode to more than
        178,956,970 pixels (a decompression bomb).
    """
    if not encoded:
        raise DamagedImageError("it holds no bytes")
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        if image.mode == "RGB":
            image.load()
            return image
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise DamagedImageError(f"it is no image in {', '.join(_FORMATS)} format") from error
    except MemoryError:
        raise
    # Pillow's plugins report broken files with whatever their parsing trips over: OSError,
    # SyntaxError, ValueError, struct.error, DecompressionBombError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise DamagedImageError(f"{type(error).__name__}: {reason}") from error


def _resize(
    image: Image.Image, height: int, width: int, resampling: Image.Resampling
) -> Image.Image:
    if (image.height, image.width) == (height, width):
        return image
    if height * width > _MAX_PIXELS:
        raise DamagedImageError(
            f"{image.width} × {image.height} pixels would become {width} × {height} when scaled"
        )
    return image.resize((width, height), resampling)


def _scaled_for_center_crop(
    image: Image.Image, target: tuple[int, int]
) -> tuple[int, int, Image.Resampling]:
    """Height, width and filter with which timm scales before a centre crop.

    A square target scales the shorter side to it, the longer one truncated (torchvision's
    `Resize`), bicubic. Where the targets differ, timm 0.9.16 takes the larger of the two scales,
    rounds both sides, and falls back to **bilinear** whatever filter was asked for
    (`ResizeKeepRatio(scale_size)` in `transforms_imagenet_eval`).
    """
    target_height, target_width = target
    if target_height == target_width:
        short, long = sorted((image.height, image.width))
        scaled_long = int(target_height * long / short)
        if image.height <= image.width:
            return target_height, scaled_long, Image.Resampling.BICUBIC
        return scaled_long, target_width, Image.Resampling.BICUBIC
    ratio = min(image.height / target_height, image.width / target_width)
    height, width = round(image.height / ratio), round(image.width / ratio)
    return height, width, Image.Resampling.BILINEAR


@dataclass(frozen=True)
class EvalTransform:
    """Encoded bytes → the evaluation image, uint8 `[H, W, 3]`, equal to timm's in every pixel.

    Follows `timm.data.transforms_imagenet_eval` (0.9.16) with bicubic interpolation, the official
    model's setting (REFERENCE.md §3).

    Attributes:
      resolution: side of the square crop, or (height, width), in pixels.
      crop_fraction: the crop's share of the scaled image, in (0, 1].
      crop_mode: "center" keeps the aspect and crops the middle; "squash" scales both sides,
        ignoring the aspect, then crops.
    """

    resolution: Resolution
    crop_fraction: float
    crop_mode: CropMode

    def __post_init__(self):
        height_and_width(self.resolution)
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must lie in (0, 1], not {self.crop_fraction}.")
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(f'crop_mode must be "center" or "squash", not {self.crop_mode!r}.')

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Decodes, scales and crops one image. Raises DamagedImageError (see `decode_rgb`)."""
        height, width = height_and_width(self.resolution)
        target = (
            math.floor(height / self.crop_fraction),
            math.floor(width / self.crop_fraction),
        )
        image = decode_rgb(encoded)
        if self.crop_mode == "squash":
            image = _resize(image, *target, Image.Resampling.BICUBIC)
        else:
            image = _resize(image, *_scaled_for_center_crop(image, target))
        # Python's rounding (half to even), as torchvision's CenterCrop.
        top = round((image.height - height) / 2)
        left = round((image.width - width) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)))


def decode_eval(
    encoded: bytes, *, resolution: Resolution, crop_fraction: float, crop_mode: CropMode
) -> np.ndarray:
    """Encoded bytes → uint8 `[H, W, 3]`: `EvalTransform` for a single image."""
    return EvalTransform(resolution, crop_fraction, crop_mode)(encoded)
