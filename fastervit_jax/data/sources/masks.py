"""Images with masks of classes: ADE20K, folders of one's own, TFDS sets, scattered digits.

A mask is an image file with one value per pixel: the class, or the value of pixels to ignore.
`MaskedSource.read` returns both decoded, and refuses a mask that does not belong to its image.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from fastervit_jax.data.ade20k_names import ADE20K_NAMES
from fastervit_jax.data.images import (
    AS_THE_REFERENCE,
    FORMATS,
    IMAGE_SUFFIXES,
    DamagedImageError,
    Decoding,
    decode_rgb,
)
from fastervit_jax.data.sources.tfds import TfdsRecords

IGNORE = 255
"""The value of a decoded mask's pixels that count for nothing."""

MOST_CLASSES = 255
"""Decoded masks are uint8, with one value for ignored pixels."""

_MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
_SHOWN = 5


class MaskedExample(NamedTuple):
    """An image and its mask as stored.

    Attributes:
        encoded: content of the image file.
        mask: content of the mask's file.
        key: name of the image, for messages.
    """

    encoded: bytes
    mask: bytes
    key: str


class MaskedSource:
    """A data set of images with masks. Subclasses say where the files come from.

    Attributes:
        class_names: names of the classes, in the order of the labels.
        ignore_value: value of the stored masks that is ignored; None: there is none but 255.
        first_value: value of the stored masks that is the first class.
    """

    class_names: tuple[str, ...]
    ignore_value: int | None = None
    first_value: int = 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> MaskedExample:
        raise NotImplementedError

    def read(
        self, example: MaskedExample, decoding: Decoding = AS_THE_REFERENCE
    ) -> tuple[Image.Image, np.ndarray]:
        """Decodes an example.

        Args:
            example: of this source.
            decoding: what becomes of transparency and of the EXIF orientation of the image.

        Returns:
            The RGB image, and the classes of its pixels, uint8 [H, W], with `IGNORE` where there is
            no class.

        Raises:
            DamagedImageError: a file cannot be decoded.
            ValueError: the mask has another size, is no map of classes, or has an unknown class.
        """
        image = decode_rgb(example.encoded, decoding)
        values = decode_mask(example.mask, example.key)
        if values.shape != (image.height, image.width):
            raise ValueError(
                f"Invalid mask of {example.key}: expected {image.height} × {image.width} pixels as "
                f"the image, got {values.shape[0]} × {values.shape[1]}."
            )
        return image, self._classes(values, example.key)

    def _classes(self, values: np.ndarray, key: str) -> np.ndarray:
        ignored = values == IGNORE
        if self.ignore_value is not None:
            ignored |= values == self.ignore_value
        classes = values.astype(np.int64) - self.first_value
        wrong = ~ignored & ((classes < 0) | (classes >= self.num_classes))
        if wrong.any():
            found = ", ".join(map(str, np.unique(values[wrong])[:_SHOWN]))
            last = self.first_value + self.num_classes - 1
            extra = "" if self.ignore_value is None else f", {self.ignore_value}"
            raise ValueError(
                f"Invalid mask of {key}: expected values {self.first_value} to {last}, one for each"
                f" of the {self.num_classes} classes, or {IGNORE}{extra} to ignore; got {found}."
            )
        if ignored.all():
            logging.warning("All pixels of the mask of %s are ignored.", key)
        return np.where(ignored, IGNORE, classes).astype(np.uint8)


def decode_mask(encoded: bytes, key: str) -> np.ndarray:
    """Decodes a mask to its stored values, integers [H, W].

    Palette images give their indices.

    Raises:
        DamagedImageError: the bytes cannot be decoded.
        ValueError: the file stores colors, not classes.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            mode = image.mode
            if mode in ("1", "L", "P", "I;16", "I"):
                return np.asarray(image).astype(np.int64)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types (see `decode_rgb`)
        raise DamagedImageError(f"its mask cannot be decoded: {error}") from error
    raise ValueError(
        f"Invalid mask of {key}: expected one value per pixel (grayscale or palette), got a file "
        f"of mode {mode}. Convert its colors to class numbers."
    )


class MaskFolders(MaskedSource):
    """Image files and mask files with the same relative path, but for the ending.

    Args:
        images: directory of the images.
        masks: directory of the masks.
        class_names: names of the classes.
        ignore_value: see `MaskedSource`.
        first_value: see `MaskedSource`.

    Raises:
        ValueError: a directory is missing or empty, or an image has no mask or a mask no image;
            the message lists them.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        class_names: Sequence[str],
        *,
        ignore_value: int | None = None,
        first_value: int = 0,
    ):
        if not 2 <= len(class_names) <= MOST_CLASSES:
            raise ValueError(
                f"Invalid number of classes: expected 2 to {MOST_CLASSES}, got {len(class_names)}."
            )
        self.class_names = tuple(class_names)
        self.ignore_value = ignore_value
        self.first_value = first_value
        of_images = _files(Path(images).expanduser(), tuple(IMAGE_SUFFIXES))
        of_masks = _files(Path(masks).expanduser(), _MASK_SUFFIXES)
        without_mask = sorted(set(of_images) - set(of_masks))
        without_image = sorted(set(of_masks) - set(of_images))
        problems = [
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}" + ", …" * (len(names) > _SHOWN)
            for names, what in (
                (without_mask, "images have no mask"),
                (without_image, "masks have no image"),
            )
            if names
        ]
        if problems:
            raise ValueError(f"Invalid pairs of {images} and {masks}: {'; '.join(problems)}.")
        names = sorted(of_images)
        self._images = [of_images[name] for name in names]
        self._masks = [of_masks[name] for name in names]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> MaskedExample:
        path = self._images[index]
        return MaskedExample(path.read_bytes(), self._masks[index].read_bytes(), str(path))


def _files(root: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files below a directory, by their relative path without the ending."""
    if not root.is_dir():
        raise ValueError(f"Directory not found: {root}.")
    files = {
        str(path.relative_to(root).with_suffix("")): path
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }
    if not files:
        raise ValueError(f"{root} contains no files with the endings {', '.join(suffixes)}.")
    return files


class TfdsMasks(MaskedSource):
    """A TFDS data set with the features `image` and `segmentation_mask`.

    Args:
        spec: `NAME[/CONFIG[:VERSION]]@SPLIT`.
        class_names: names of the values of the masks, from 0.
        data_dir: directory of the prepared data sets.

    Raises:
        ValueError: the data set is missing, or has no masks of classes.
    """

    def __init__(self, spec: str, class_names: Sequence[str], *, data_dir: str | None = None):
        if spec.partition("@")[0].partition("/")[0].partition(":")[0] == "scene_parse150":
            raise ValueError(
                f"Invalid data set tfds:{spec}: scene_parse150 holds the 100-category instance "
                "annotations, not ADE20K's 150 classes. Download ADEChallengeData2016 and use "
                "ade20k:ROOT@training."
            )
        self.class_names = tuple(class_names)
        self._records = _TfdsRecords(spec, data_dir=data_dir)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> MaskedExample:
        return self._records.masked_example(index)


class _TfdsRecords(TfdsRecords):
    """The records of a TFDS set with masks."""

    _image, _mask = "image", "segmentation_mask"

    @property
    def _encoded(self) -> tuple[str, ...]:
        return (self._image, self._mask)

    def _choose(self, info: Any) -> None:
        import tensorflow_datasets as tfds

        features = dict(info.features)
        if not all(isinstance(features.get(name), tfds.features.Image) for name in self._encoded):
            raise ValueError(
                f"tfds:{self._name} is not a segmentation data set: expected the image features "
                f"image and segmentation_mask, got the features {', '.join(features)}."
            )

    def masked_example(self, index: int) -> MaskedExample:
        record, key = self.record(index)
        return MaskedExample(record[self._image], record[self._mask], key)


def open_masks(spec: str, *, data_dir: str | None = None) -> MaskedSource:
    """Opens a data set of images with masks.

    Args:
        spec: `ade20k:ROOT@training` or `@validation`, ADE20K as it is unpacked;
            `masks:IMAGES,MASKS,CLASSES[,IGNORE]`, two directories, a text file with one class name
            per line in the order of the values, and a value to ignore beside 255;
            `tfds:NAME@SPLIT,CLASSES`, a TFDS set with the feature `segmentation_mask`; or
            `scattered_digits:train` and `scattered_digits:validation`, which are written once in
            `data_dir`.
        data_dir: of TFDS sets and of the scattered digits.

    Raises:
        ValueError: the specification is invalid, or the data set cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "ade20k" and rest:
        return _open_ade20k(rest)
    if kind == "masks" and rest.count(",") in (2, 3):
        images, masks, classes, *ignore = rest.split(",")
        if ignore and not ignore[0].isdigit():
            raise ValueError(f"Invalid data set {spec!r}: expected a number after the last comma.")
        value = int(ignore[0]) if ignore else None
        return MaskFolders(images, masks, read_class_names(classes), ignore_value=value)
    if kind == "tfds" and rest:
        name, _, classes = rest.partition(",")
        if name.startswith("scene_parse150"):
            return TfdsMasks(name, (), data_dir=data_dir)
        if classes:
            return TfdsMasks(name, read_class_names(classes), data_dir=data_dir)
    if kind == "scattered_digits" and rest in ("train", "validation"):
        from fastervit_jax.data.sources import scattered_digits

        root = scattered_digits.scattered_root(data_dir)
        scattered_digits.write_scattered_digits(root)
        names = ("background", *map(str, range(10)))
        return MaskFolders(root / rest, root / "masks" / rest, names)
    raise ValueError(
        f"Invalid data set {spec!r}: expected ade20k:ROOT@SPLIT, masks:IMAGES,MASKS,CLASSES or "
        "tfds:NAME@SPLIT,CLASSES, such as ade20k:/data/ADEChallengeData2016@validation. CLASSES is "
        "a text file with one class name per line."
    )


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Reads class names, one per line, in the order of the masks' values.

    Raises:
        ValueError: the file cannot be read, or does not name 2 to 255 different classes.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the class names in {path}: {error}.") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not 2 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names):
        raise ValueError(
            f"Invalid class names in {path}: expected 2 to {MOST_CLASSES} different names, one per "
            f"line, got {len(names)} ({len(set(names))} different)."
        )
    return names


def _open_ade20k(spec: str) -> MaskFolders:
    root, separator, split = spec.rpartition("@")
    if not separator or split not in ("training", "validation"):
        raise ValueError(
            f"Invalid data set ade20k:{spec}: expected ade20k:ROOT@training or "
            "ade20k:ROOT@validation, such as ade20k:/data/ADEChallengeData2016@validation."
        )
    base = Path(root).expanduser()
    # 0 means no class in the files. The first class is 1.
    return MaskFolders(
        base / "images" / split,
        base / "annotations" / split,
        ADE20K_NAMES,
        ignore_value=0,
        first_value=1,
    )
