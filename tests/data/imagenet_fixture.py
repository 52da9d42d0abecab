"""Prepared TFDS sets made of real photographs.

`prepare_photographs` builds a small set with the features of `imagenet2012`, by a real TFDS builder
and without TensorFlow. `write_archives` writes ImageNet's own two archives, small, from which the
real `imagenet2012` builder (which needs TensorFlow) makes the real set.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.photographs import encode, photographs

CLASSES = ("n01440764", "n01739381", "n02105855")
# Files of ImageNet that are not what they are called; TFDS repairs them by name.
CMYK_FILE = "n01739381_1309.JPEG"
PNG_FILE = "n02105855_2933.JPEG"
TRAIN_PER_CLASS = 16
NUM_VALIDATION = 12


def pieces() -> Iterator[Image.Image]:
    """Endless different pieces of the photographs, about 160 × 120 pixels."""
    rng = np.random.default_rng(0)
    photos = list(photographs().values())
    while True:
        for photo in photos:
            width, height = rng.integers(100, 200, 2)
            left = rng.integers(0, photo.width - width)
            top = rng.integers(0, photo.height - height)
            yield photo.crop((left, top, left + width, top + height))


def train_files() -> dict[str, bytes]:
    """ImageNet-like training files by name, `TRAIN_PER_CLASS` a class."""
    images = pieces()
    files = {
        f"{name}_{number}.JPEG": encode(next(images), "JPEG", quality=90)
        for name in CLASSES
        for number in range(TRAIN_PER_CLASS - (name != CLASSES[0]))
    }
    files[CMYK_FILE] = encode(next(images).convert("CMYK"), "JPEG", quality=90)
    files[PNG_FILE] = encode(next(images), "PNG")
    return files


def validation_files() -> dict[str, bytes]:
    """ImageNet-like validation files by name."""
    images = pieces()
    for _ in range(100):
        next(images)
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": encode(next(images), "JPEG", quality=90)
        for number in range(1, NUM_VALIDATION + 1)
    }


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_archives(folder: Path) -> None:
    """Writes ILSVRC2012_img_train.tar (a tar of class tars) and ILSVRC2012_img_val.tar."""
    train = train_files()
    class_archives = {
        f"{name}.tar": _tar({f: data for f, data in train.items() if f.startswith(name)})
        for name in CLASSES
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(class_archives))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(validation_files()))


def prepare_photographs(data_dir: Path) -> None:
    """Prepares the set `photographs` (train 48, validation 12, test 2 unlabelled) as array_record.

    Read it as `tfds:photographs@train` with `data_dir`. No TensorFlow is used.
    """
    import tensorflow_datasets as tfds

    class Photographs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(names=list(CLASSES)),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            validation = validation_files()
            return {
                "train": self._generate_examples(train_files(), by_name=True),
                "validation": self._generate_examples(validation, by_name=False),
                "test": self._generate_examples(dict(list(validation.items())[:2]), label=-1),
            }

        def _generate_examples(self, files, by_name=False, label=None):
            for number, (name, data) in enumerate(files.items()):
                known = name.split("_")[0] if by_name else CLASSES[number % len(CLASSES)]
                record = {"image": data, "label": known if label is None else label}
                yield name, record | {"file_name": name}

    Photographs(data_dir=data_dir).download_and_prepare(file_format="array_record")
