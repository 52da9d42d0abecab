"""Real photographs, bundled with scikit-image and scikit-learn, and files made of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photographs() -> dict[str, Image.Image]:
    """RGB photographs by name; sizes differ, none is square but the first."""
    import skimage.data
    import sklearn.datasets

    skimage_folder = Path(skimage.data.__file__).parent
    sklearn_folder = Path(sklearn.datasets.__file__).parent / "images"
    files = {
        "astronaut": skimage_folder / "astronaut.png",
        "chelsea": skimage_folder / "chelsea.png",
        "coffee": skimage_folder / "coffee.png",
        "rocket": skimage_folder / "rocket.jpg",
        "china": sklearn_folder / "china.jpg",
        "flower": sklearn_folder / "flower.jpg",
    }
    return {name: Image.open(path).convert("RGB") for name, path in files.items()}


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def files_of_every_kind() -> dict[str, bytes]:
    """Encoded images as data sets hold them: every mode, odd sizes, from 1 × 1 to megapixels."""
    photos = photographs()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees when shown
    chelsea, coffee = photos["chelsea"], photos["coffee"]
    palette = coffee.quantize(64)
    gray_alpha = Image.merge("LA", (chelsea.convert("L"), coffee.resize(chelsea.size).convert("L")))
    transparent = chelsea.copy()
    transparent.putalpha(coffee.resize(chelsea.size).convert("L"))
    deep = Image.fromarray(np.asarray(chelsea.convert("L")).astype(np.uint16) * 257)
    return {
        "jpeg": encode(photos["china"], "JPEG", quality=90),
        "jpeg square": encode(photos["astronaut"], "JPEG", quality=75),
        "jpeg 4:4:4": encode(photos["flower"], "JPEG", quality=97, subsampling=0),
        "jpeg progressive": encode(photos["rocket"], "JPEG", progressive=True),
        "jpeg odd size": encode(coffee.crop((3, 5, 336, 222)), "JPEG", quality=88),
        "jpeg upright": encode(photos["rocket"].crop((100, 0, 331, 427)), "JPEG"),
        "jpeg large": encode(photos["china"].resize((1601, 1203)), "JPEG"),
        "jpeg gray": encode(chelsea.convert("L"), "JPEG"),
        "jpeg cmyk": encode(chelsea.convert("CMYK"), "JPEG"),
        "jpeg exif rotated": encode(chelsea, "JPEG", exif=exif),
        "jpeg of the exact size": encode(photos["china"].resize((256, 256)), "JPEG"),
        "png": encode(coffee.crop((0, 0, 501, 375)), "PNG"),
        "png gray": encode(coffee.convert("L"), "PNG"),
        "png 16 bit": encode(deep, "PNG"),
        "png bilevel": encode(coffee.convert("1"), "PNG"),
        "png palette": encode(palette, "PNG"),
        "png palette transparent": encode(palette, "PNG", transparency=5),
        "png alpha": encode(transparent, "PNG"),
        "png gray alpha": encode(gray_alpha, "PNG"),
        "webp": encode(photos["flower"], "WEBP", quality=80),
        "gif": encode(palette, "GIF"),
        "1 x 1": encode(chelsea.crop((9, 9, 10, 10)), "PNG"),
        "3 x 5": encode(chelsea.crop((9, 9, 12, 14)), "PNG"),
        "smaller than the crop": encode(chelsea.crop((50, 60, 163, 131)), "JPEG"),
        "1 high": encode(chelsea.crop((0, 100, 7, 101)), "PNG"),
        "2 wide": encode(chelsea.crop((100, 20, 102, 31)), "PNG"),
    }
