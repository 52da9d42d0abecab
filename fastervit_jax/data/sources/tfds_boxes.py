"""Images with boxes that TensorFlow Datasets has prepared, such as `coco/2017`.

TFDS stores boxes as shares of the image, and no sizes of images. So all records are read once, and
what they say is kept as a JSON file in COCO's format in the user's cache directory.
"""

import hashlib
import io
import json
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastervit_jax.data.coco_names import COCO_NAMES
from fastervit_jax.data.images import AS_THE_REFERENCE, Decoding
from fastervit_jax.data.paths import write_whole
from fastervit_jax.data.sources.coco import CocoSource
from fastervit_jax.data.sources.digits import default_root
from fastervit_jax.data.sources.tfds import TfdsRecords


class TfdsBoxes(CocoSource):
    """A TFDS data set with the features of `coco/2017`: `image`, and `objects` with boxes."""

    def __init__(
        self,
        spec: str,
        *,
        data_dir: str | None = None,
        decoding: Decoding = AS_THE_REFERENCE,
    ):
        """Opens a prepared data set; the first time, reads all of it.

        Args:
            spec: such as `coco/2017@validation`.
            data_dir: directory of the prepared data sets (`TfdsRecords`).
            decoding: what becomes of transparency and of the EXIF orientation.

        Raises:
            ValueError: the data set cannot be read, or has other features.
        """
        self.decoding = decoding
        self._records = _Objects(spec, data_dir=data_dir)
        self.annotations = self._records.annotations()
        self._read_annotations()

    def _encoded(self, index: int) -> bytes:
        return self._records.record(index)[0]["image"]


class _Objects(TfdsRecords):
    """Records with objects."""

    _image = "image"

    def _choose(self, info: Any) -> None:
        import tensorflow_datasets as tfds

        features = dict(info.features)
        objects = getattr(features.get("objects"), "feature", None) or {}
        if not (
            isinstance(features.get("image"), tfds.features.Image)
            and "bbox" in objects
            and "label" in objects
            and isinstance(objects["label"], tfds.features.ClassLabel)
        ):
            raise ValueError(
                f"tfds:{self._name} is not a data set for detection: expected an image, and "
                f"objects with bbox and label, got the features {', '.join(features)}."
            )
        self.class_names = tuple(objects["label"].names)
        self._prepared_at = f"{info.data_dir}@{self._split}"

    def annotations(self):
        """The JSON file; it is written where it is missing."""
        digest = hashlib.sha256(f"{self._prepared_at} {len(self)}".encode()).hexdigest()[:16]
        folder = default_root().parent / "tfds_boxes"
        path = folder / f"{self._name.split(':')[0].replace('/', '_')}_{digest}.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"Reading the boxes of tfds:{self._name}@{self._split}, once …", flush=True)
            write_whole(path, json.dumps(self._content()))
        return path

    def _content(self) -> dict[str, list]:
        """What the records say, in COCO's format."""
        ids = _category_ids(self.class_names)
        images: list[dict] = []
        annotations: list[dict] = []
        for number in range(len(self)):
            record, key = self.record(number)
            width, height = _size(record["image"], key)
            images.append({"id": number, "file_name": key, "width": width, "height": height})
            objects = record["objects"]
            for row, (top, left, bottom, right) in enumerate(np.asarray(objects["bbox"])):
                box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
                one = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[int(objects["label"][row])],
                    "bbox": [float(side) for side in box],
                }
                if "area" in objects:
                    one["area"] = float(objects["area"][row])
                if "is_crowd" in objects:
                    one["iscrowd"] = int(objects["is_crowd"][row])
                annotations.append(one)
        categories = [
            {"id": each, "name": name} for each, name in zip(ids, self.class_names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}


def _category_ids(names: tuple[str, ...]) -> list[int]:
    """COCO's own ids for its 80 classes; else the labels."""
    known = {name: category for category, name in enumerate(COCO_NAMES) if name}
    if set(names) == set(known):
        return [known[name] for name in names]
    return list(range(len(names)))


def _size(encoded: bytes, key: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size
    except UnidentifiedImageError:
        raise ValueError(f"Cannot read {key}: it is not an image.") from None
