"""Images with boxes: data sets in COCO's format, which labelling tools export.

- `coco:ROOT@SPLIT` is the usual layout: `ROOT/SPLIT/*.jpg` and
  `ROOT/annotations/instances_SPLIT.json`.
- `coco:IMAGES,FILE.json` is a directory of images and a JSON file.
- `tfds:coco/2017@SPLIT` is a set that TFDS has prepared (`tfds_boxes`).

A box is [x, y, width, height] in pixels. Annotations of crowds are left out, and so are boxes that
have no area inside their image. Images without boxes stay. Masks are not read.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastervit_jax.data.images import AS_THE_REFERENCE, Decoding


class Annotated(NamedTuple):
    """One image with its boxes.

    Attributes:
        encoded: content of the image file.
        key: name of the file, for messages.
        size: (height, width) in pixels, as the JSON file says.
        labels: classes of the boxes, int32 [n].
        boxes: corner boxes (left, top, right, bottom) in pixels, float32 [n, 4].
    """

    encoded: bytes
    key: str
    size: tuple[int, int]
    labels: np.ndarray
    boxes: np.ndarray


class CocoSource:
    """A data set in COCO's format, with random access (picklable, for worker processes).

    Attributes:
        annotations: the JSON file.
        class_names: names in the order of the labels; "" where COCO has a gap.
        category_ids: the id of each label in the JSON file.
        image_ids: the id of each image in the JSON file.
        sizes: (height, width) of each image, int [N, 2].
        dropped: how many annotations were left out, by reason.
        decoding: what becomes of transparency and of the EXIF orientation of the images.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        annotations: str | os.PathLike,
        decoding: Decoding = AS_THE_REFERENCE,
    ):
        """Reads the JSON file.

        Raises:
            ValueError: it cannot be read, is not in COCO's format, or names missing images.
        """
        self.annotations = Path(annotations)
        self.decoding = decoding
        self._directory = Path(images)
        self._read_annotations()
        _check_files(self._directory, self._files)

    def _read_annotations(self) -> None:
        content = _read(self.annotations)
        self.class_names, self.category_ids = _classes(content["categories"], self.annotations)
        self._files, self.image_ids, self.sizes = _images(content["images"], self.annotations)
        self._fill(content["annotations"])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def most_boxes(self) -> tuple[int, str]:
        """The largest number of boxes of an image, and the name of that image."""
        counts = np.diff(self._first)
        return int(counts.max()), self._files[int(counts.argmax())]

    @property
    def num_boxes(self) -> int:
        """Number of boxes of all images."""
        return len(self._labels)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Annotated:
        part = slice(self._first[index], self._first[index + 1])
        height, width = self.sizes[index]
        return Annotated(
            encoded=self._encoded(index),
            key=self._files[index],
            size=(int(height), int(width)),
            labels=self._labels[part],
            boxes=self._boxes[part],
        )

    def _encoded(self, index: int) -> bytes:
        """Content of an image file."""
        return (self._directory / self._files[index]).read_bytes()

    def _fill(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        """Sorts the annotations by image."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        row_of = {image: row for row, image in enumerate(self.image_ids)}
        listed: list[tuple[int, int, list[float]]] = []
        self.dropped = {"crowds": 0, "boxes without area": 0}
        for annotation in annotations:
            name = f"{self.annotations}: annotation {annotation.get('id')}"
            if not _is_in(row_of, annotation.get("image_id")):
                raise ValueError(
                    f"{name} belongs to image {annotation.get('image_id')}, which is not listed."
                )
            if not _is_in(label_of, annotation.get("category_id")):
                raise ValueError(
                    f"{name} has the unknown category {annotation.get('category_id')}. Known: "
                    f"{', '.join(str(each) for each in self.category_ids[:8])}, …"
                )
            if annotation.get("iscrowd"):
                self.dropped["crowds"] += 1
                continue
            row = row_of[annotation["image_id"]]
            label = label_of[annotation["category_id"]]
            listed.append((row, label, _box(annotation, name)))
        listed.sort(key=lambda each: each[0])
        rows = np.asarray([each[0] for each in listed], int)
        labels = np.asarray([each[1] for each in listed], np.int32)
        boxes = np.asarray([each[2] for each in listed], np.float64).reshape(-1, 4)
        _check_format(boxes, self.sizes[rows], self.annotations)

        boxes[:, 2:] += boxes[:, :2]
        height, width = self.sizes[rows].T
        boxes[:, 0::2] = np.clip(boxes[:, 0::2], 0, width[:, None])
        boxes[:, 1::2] = np.clip(boxes[:, 1::2], 0, height[:, None])
        whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        self.dropped["boxes without area"] = int((~whole).sum())
        self._labels, self._boxes = labels[whole], boxes[whole].astype(np.float32)
        self._first = np.searchsorted(rows[whole], np.arange(len(self._files) + 1))


def open_coco(spec: str, decoding: Decoding = AS_THE_REFERENCE) -> CocoSource:
    """Opens what follows `coco:` in the name of a data set.

    Raises:
        ValueError: the specification is invalid, or the data set cannot be read.
    """
    if "," in spec:
        images, _, annotations = spec.rpartition(",")
        return CocoSource(images, annotations, decoding)
    root, separator, split = spec.rpartition("@")
    if not separator or not root or not split:
        raise ValueError(
            f"Invalid data set 'coco:{spec}': expected coco:ROOT@SPLIT, such as "
            "coco:/data/coco@val2017, or coco:IMAGES,FILE.json."
        )
    path = Path(root) / "annotations" / f"instances_{split}.json"
    return CocoSource(Path(root) / split, path, decoding)


def open_boxes(
    spec: str, *, data_dir: str | None = None, decoding: Decoding = AS_THE_REFERENCE
) -> CocoSource:
    """Opens a data set of images with boxes.

    Args:
        spec: `coco:ROOT@SPLIT`, `coco:IMAGES,FILE.json`, or `scattered_digits:train` and
            `scattered_digits:validation`, which are written once in `data_dir`; or
            `tfds:NAME@SPLIT`, such as `tfds:coco/2017@validation`.
        data_dir: for the scattered digits, by default the user's cache directory; for TFDS, the
            directory with the prepared data sets.
        decoding: what becomes of transparency and of the EXIF orientation.

    Raises:
        ValueError: the specification is invalid, or the data set cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "coco" and rest:
        return open_coco(rest, decoding)
    if kind == "scattered_digits" and rest in ("train", "validation"):
        from fastervit_jax.data.sources import scattered_digits

        root = scattered_digits.scattered_root(data_dir)
        scattered_digits.write_scattered_digits(root)
        return open_coco(f"{root}@{rest}", decoding)
    if kind == "tfds" and rest:
        from fastervit_jax.data.sources.tfds_boxes import TfdsBoxes

        return TfdsBoxes(rest, data_dir=data_dir, decoding=decoding)
    raise ValueError(
        f"Invalid data set {spec!r}: expected coco:ROOT@SPLIT, coco:IMAGES,FILE.json or "
        "tfds:NAME@SPLIT, such as coco:/data/coco@val2017."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file ({error}).") from None
    keys = ("images", "annotations", "categories")
    missing = [
        key
        for key in keys
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise ValueError(
            f"{path} is not in COCO's format: expected lists under {', '.join(keys)}, but "
            f"{', '.join(missing)} is missing."
        )
    for key in keys:
        odd = [number for number, each in enumerate(content[key]) if not isinstance(each, dict)]
        if odd:
            raise ValueError(
                f"{path} is not in COCO's format: invalid entry {odd[0]} of {key}: expected an "
                f"object with keys, got {content[key][odd[0]]!r:.100}."
            )
    if not content["images"]:
        raise ValueError(f"{path} lists no images.")
    if not content["categories"]:
        raise ValueError(f"{path} lists no categories.")
    return content


def _classes(categories, path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids by label: COCO's own ids as they are, and others in their order."""
    names = {}
    for category in categories:
        if not isinstance(category.get("id"), int) or "name" not in category:
            raise ValueError(f"{path}: invalid category {category}: expected an id and a name.")
        if category["id"] in names:
            raise ValueError(f"{path}: two categories have the id {category['id']}.")
        names[category["id"]] = str(category["name"])
    if len(names) == 80 and min(names) == 1 and max(names) == 90:
        return tuple(names.get(i, "") for i in range(91)), tuple(range(91))
    ids = tuple(sorted(names))
    return tuple(names[each] for each in ids), ids


def _images(images, path: Path) -> tuple[list[str], tuple, np.ndarray]:
    for image in images:
        lacking = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if lacking:
            raise ValueError(f"{path}: image {image.get('id')} has no {lacking[0]}.")
        sides = image["height"], image["width"]
        if not isinstance(image["id"], int | str):
            raise ValueError(f"{path}: invalid id of an image: {image['id']!r:.100}.")
        if not all(_is_number(side) and side >= 1 for side in sides):
            raise ValueError(
                f"{path}: invalid height and width of image {image['id']}: expected pixels, 1 or "
                f"more, got {sides!r:.100}."
            )
    ids = tuple(image["id"] for image in images)
    if len(set(ids)) < len(ids):
        raise ValueError(f"{path}: two images have the same id.")
    sizes = np.asarray([(image["height"], image["width"]) for image in images], int)
    return [str(image["file_name"]) for image in images], ids, sizes


def _is_in(table: Mapping[Any, int], key: Any) -> bool:
    """Whether a value of the file is a key: it may be a list, which cannot be looked up."""
    return isinstance(key, int | str) and key in table


def _is_number(value: Any) -> bool:
    """Whether a value of the file is a number that pixels can have: not NaN, not without end."""
    return isinstance(value, int | float) and abs(value) < 2**31


def _check_files(directory: Path, files: Sequence[str]) -> None:
    if not directory.is_dir():
        raise ValueError(f"The directory of images, {directory}, does not exist.")
    missing = [file for file in files if not os.path.isfile(directory / file)]
    if missing:
        raise ValueError(
            f"Missing images: {len(missing)} of {len(files)} in {directory}, beginning with "
            f"{missing[0]:.100}."
        )


def _box(annotation: Mapping[str, Any], name: str) -> list[float]:
    box = annotation.get("bbox")
    if box is None:
        raise ValueError(f"{name} has no bbox. A data set of masks alone cannot train a detector.")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{name}: invalid bbox {box!r:.100}: expected [x, y, width, height].")
    return box


def _check_format(boxes: np.ndarray, sizes: np.ndarray, path: Path) -> None:
    """Raises ValueError where boxes are corners: they leave the image as [x, y, width, height]."""
    if not len(boxes):
        return
    limit = sizes[:, ::-1] + 1
    outside = ((boxes[:, :2] + boxes[:, 2:]) > limit).any(axis=1)
    as_corners = ((boxes[:, 2:] <= limit) & (boxes[:, 2:] >= boxes[:, :2])).all()
    if as_corners and outside.mean() > 0.2:
        raise ValueError(
            f"{path}: {outside.sum()} of {len(boxes)} boxes leave their image as [x, y, width, "
            "height], but all are inside as corners [x1, y1, x2, y2]. Write them as [x, y, width, "
            "height], COCO's format."
        )
