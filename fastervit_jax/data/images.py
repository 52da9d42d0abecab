"""Decode images to the uint8 pixels that the reference implementation (timm, Pillow) produces.

Pillow decodes and resizes every image, so that the pixels equal the reference's:

- JPEG files are decoded at full size. JPEG's draft mode would change the pixels.
- Images are resized with Pillow's antialiased filters and rounded to uint8.
- The EXIF orientation and transparency are ignored, as in timm, unless `Decoding` says otherwise.
"""

import collections
import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

CropMode = Literal["center", "squash"]
Resolution = int | tuple[int, int]

# Formats that Pillow may decode. Other formats are excluded on purpose: some start other programs
# (EPS runs Ghostscript), others do not store photographs.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SUFFIXES: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
if features.check("avif"):  # a Pillow that was built with it
    FORMATS, _SUFFIXES = (*FORMATS, "AVIF"), (*_SUFFIXES, ".avif")

IMAGE_SUFFIXES = frozenset(_SUFFIXES)
"""Endings of the files that count as images, in lower case."""

# Pillow refuses to decode more pixels than this, twice the number at which it warns. The same limit
# applies after resizing, because a small image can become huge (1 × 20,000 pixels).
_MAX_PIXELS = 178_956_970


# `decode_rgb` counts large images, and whoever reads a set reports them (`describe_seen`).
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_LARGE = 89_478_485
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Decoding:
    """What becomes of parts of an image file that the reference ignores.

    Attributes:
        transparency: "drop" shows the color that transparent pixels hide, usually black, as timm
            does. "white" and "black" put the image on that background.
        exif: "ignore" shows a photograph as the sensor stored it, as timm does. "apply" turns it
            upright, according to its EXIF orientation.
    """

    transparency: Literal["drop", "white", "black"] = "drop"
    exif: Literal["ignore", "apply"] = "ignore"

    def __post_init__(self):
        for name, allowed in (
            ("transparency", ("drop", "white", "black")),
            ("exif", ("ignore", "apply")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"Invalid {name}: expected one of {', '.join(allowed)}, got {value!r}."
                )


AS_THE_REFERENCE = Decoding()

_seen: collections.Counter[str] = collections.Counter()


def take_seen() -> dict[str, int]:
    """Returns how many special images this process has decoded since the last call.

    The keys are "transparent", "turned" (with an EXIF orientation) and "large".
    """
    counts = dict(_seen)
    _seen.clear()
    return counts


def describe_seen(counts: dict[str, int], decoding: "Decoding") -> list[str]:
    """Returns one sentence for each kind of special image that was decoded.

    Args:
        counts: sums of `take_seen`.
        decoding: how they were decoded.
    """
    sentences = {
        "transparent": {
            "drop": "{} image(s) have transparent pixels, whose hidden color is shown, as in timm. "
            'transparency="white" puts them on white.',
        }.get(
            decoding.transparency,
            f"{{}} image(s) have transparent pixels. They were put on {decoding.transparency}.",
        ),
        "turned": {
            "ignore": "{} image(s) have an EXIF orientation, which is ignored, as in timm. They "
            'may lie on their side. exif="apply" turns them upright.',
            "apply": "{} image(s) were turned according to their EXIF orientation.",
        }[decoding.exif],
        "large": f"{{}} image(s) have more than {_LARGE:,} pixels. They are decoded in full. "
        f"Images with more than {_MAX_PIXELS:,} pixels count as damaged.",
    }
    return [sentences[kind].format(count) for kind, count in counts.items() if count]


class DamagedImageError(ValueError):
    """The bytes cannot be decoded to an image.

    The message says why. The caller adds the name of the file.
    """


def height_and_width(resolution: Resolution) -> tuple[int, int]:
    """Returns `(height, width)` for a resolution: `224` becomes `(224, 224)`.

    Raises:
        ValueError: the resolution is not a positive integer or a pair of them.
    """
    sides = tuple(resolution) if isinstance(resolution, list | tuple) else (resolution,) * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f"Invalid resolution: expected a positive integer or (height, width), got "
            f"{resolution!r}."
        )
    return sides


def decode_rgb(encoded: bytes, decoding: Decoding = AS_THE_REFERENCE) -> Image.Image:
    """Decodes bytes to an RGB image at the image's own size.

    Pillow's `convert` turns gray, CMYK and palette images into RGB. `decoding` says what becomes of
    transparency and of the EXIF orientation. Gray images of 9 to 16 bits are scaled to 8 bits,
    because `convert` would clip them.

    Raises:
        DamagedImageError: the bytes are empty, truncated or not an image; the image has more than
            178,956,970 pixels (a decompression bomb); or its pixels are floats or 32-bit integers.
    """
    if not encoded:
        raise DamagedImageError("the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > _LARGE:
            _seen["large"] += 1
        image.load()
        if _orientation(image) != 1:
            _seen["turned"] += 1
            if decoding.exif == "apply":
                image = ImageOps.exif_transpose(image)
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
            image = _with_8_bits(image)
        if image.mode in ("I", "F"):
            kind = "floats" if image.mode == "F" else "32-bit integers"
            raise DamagedImageError(
                f"its pixels are {kind}, whose range is not known. Scale them to 0 to 255 and save "
                "the image with 8 bits per channel"
            )
        if image.has_transparency_data:
            return _without_transparency(image, decoding.transparency)
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise DamagedImageError(f"not an image in {', '.join(FORMATS)} format") from error
    except (MemoryError, DamagedImageError):
        raise
    # Pillow's plugins raise many types for a broken file: OSError, SyntaxError, ValueError,
    # struct.error, DecompressionBombError, ...
    except Exception as error:
        reason = " ".join(str(error).split()) or "Pillow reported no reason"
        raise DamagedImageError(f"{type(error).__name__}: {reason}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation: 1 for an upright image, or where there is none."""
    if image.format == "TIFF":  # Pillow turns these upright by itself
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data, which nobody asked for
        return 1
    return found if found in range(1, 9) else 1


def _without_transparency(image: Image.Image, background: str) -> Image.Image:
    """Puts an image with transparent pixels on a background, or drops the transparency."""
    with_alpha = image.convert("RGBA")
    if with_alpha.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    _seen["transparent"] += 1
    if background == "drop":
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, background)
    canvas.alpha_composite(with_alpha)
    return canvas.convert("RGB")


_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # TIFF tags


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Scales a gray image of up to 16 bits to 8 bits: value // 257 for 16 bits.

    A TIFF file may say that its largest value is smaller, such as 4,095 for 12 bits.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    stated = tags.get(_MAX_SAMPLE_VALUE, 2**bits - 1)
    largest = stated[0] if isinstance(stated, tuple) else stated
    pixels = np.asarray(image).astype(np.uint32)
    if not 0 < largest < 2**16 or pixels.max(initial=0) > largest:
        largest = 2**16 - 1
    return Image.fromarray((pixels * 255 // largest).astype(np.uint8))


def _resize(
    image: Image.Image, height: int, width: int, resampling: Image.Resampling
) -> Image.Image:
    if (image.height, image.width) == (height, width):
        return image
    if height * width > _MAX_PIXELS:
        raise DamagedImageError(
            f"resizing would turn {image.width} × {image.height} pixels into {width} × {height}, "
            f"more than the limit of {_MAX_PIXELS:,} pixels"
        )
    return image.resize((width, height), resampling)


def _scaled_for_center_crop(
    image: Image.Image, target: tuple[int, int]
) -> tuple[int, int, Image.Resampling]:
    """Returns the height, width and filter with which timm resizes before a center crop.

    Square target: the shorter side becomes the target and the longer side is truncated to an
    integer (torchvision's `Resize`). The filter is bicubic.

    Other targets: timm 0.9.16 uses the larger of the two scales and rounds both sides. It always
    uses the **bilinear** filter there, whatever filter was requested
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
    """Decodes bytes to the evaluation image, uint8 `[H, W, 3]`. Every pixel equals timm's.

    Follows `timm.data.transforms_imagenet_eval` (0.9.16) with bicubic interpolation, the setting of
    the official models (docs/reference/numbers.md, section 3).

    Attributes:
        resolution: side of the square crop, or (height, width), in pixels.
        crop_fraction: size of the crop divided by the size of the resized image, in (0, 1].
        crop_mode: "center" keeps the aspect ratio and crops the center. "squash" resizes both
            sides without keeping the aspect ratio, then crops.
        decoding: what becomes of transparency and of the EXIF orientation.
    """

    resolution: Resolution
    crop_fraction: float
    crop_mode: CropMode
    decoding: Decoding = AS_THE_REFERENCE

    def __post_init__(self):
        height_and_width(self.resolution)
        if not isinstance(self.crop_fraction, int | float) or not 0 < self.crop_fraction <= 1:
            raise ValueError(
                f"Invalid crop_fraction: expected a number in (0, 1], got {self.crop_fraction!r}."
            )
        if self.crop_mode not in ("center", "squash"):
            raise ValueError(
                f'Invalid crop_mode: expected "center" or "squash", got {self.crop_mode!r}.'
            )

    def __call__(self, encoded: bytes) -> np.ndarray:
        """Decodes, resizes and crops one image.

        Raises:
            DamagedImageError: the bytes cannot be decoded (see `decode_rgb`).
        """
        height, width = height_and_width(self.resolution)
        target = (
            math.floor(height / self.crop_fraction),
            math.floor(width / self.crop_fraction),
        )
        image = decode_rgb(encoded, self.decoding)
        if self.crop_mode == "squash":
            image = _resize(image, *target, Image.Resampling.BICUBIC)
        else:
            image = _resize(image, *_scaled_for_center_crop(image, target))
        # Python rounds half to even, as torchvision's CenterCrop does.
        top = round((image.height - height) / 2)
        left = round((image.width - width) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)))


def decode_eval(
    encoded: bytes, *, resolution: Resolution, crop_fraction: float, crop_mode: CropMode
) -> np.ndarray:
    """Decodes, resizes and crops one image for evaluation.

    Args:
        encoded: content of an image file.
        resolution: side of the square crop, or (height, width), in pixels.
        crop_fraction: size of the crop divided by the size of the resized image, in (0, 1].
        crop_mode: "center" or "squash" (see `EvalTransform`).

    Returns:
        The pixels, uint8 `[H, W, 3]`.

    Raises:
        DamagedImageError: the bytes cannot be decoded.
        ValueError: an argument is invalid.
    """
    return EvalTransform(resolution, crop_fraction, crop_mode)(encoded)
