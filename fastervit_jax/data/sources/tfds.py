"""Data sets that TensorFlow Datasets has prepared as array_record.

Reading them needs neither TensorFlow nor the builder code of the data set, because TFDS stores a
description next to the records.
"""

import os
import re
import resource
from typing import Any

from etils import epath

from fastervit_jax.data.sources.source import Example

_DOCS = "docs/guides/train-imagenet.md shows the command"
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


class TfdsRecords:
    """Records of the TFDS data set `NAME[/CONFIG[:VERSION]]@SPLIT`, prepared in `data_dir`.

    Subclasses choose the features that they need (`_choose`).
    """

    _image: str
    """The feature that is the image."""

    @property
    def _encoded(self) -> tuple[str, ...]:
        """The features that stay encoded."""
        return (self._image,)

    def __init__(self, spec: str, *, data_dir: str | None = None):
        """Opens a prepared data set.

        Args:
            spec: such as `imagenet2012@train[:99%]` or `imagenet_v2/matched-frequency:3.0.0@test`.
            data_dir: directory of the prepared data sets; by default `TFDS_DATA_DIR`, then
                `~/tensorflow_datasets`.

        Raises:
            ValueError: the data set is missing, not in array_record, without this split, or has
                other features.
        """
        self._name, _, self._split = spec.partition("@")
        if not _NAME.fullmatch(self._name) or not self._split:
            raise ValueError(
                f"Invalid data set tfds:{spec}: expected tfds:NAME[/CONFIG[:VERSION]]@SPLIT, for "
                "example tfds:imagenet2012@train."
            )
        self._data_dir = os.path.expanduser(
            data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        )
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        info, builder = self._builder()
        self._choose(info)
        try:
            empty = info.splits[self._split].num_examples == 0
        except ValueError as error:
            raise ValueError(
                f"tfds:{self._name} has no split {self._split!r}. Choose from "
                f"{', '.join(sorted(info.splits))}, or a slice such as train[:99%]."
            ) from error
        if empty:
            raise ValueError(f"tfds:{self._name}@{self._split} has no images. Use a larger slice.")
        _allow_open_files(len(info.splits[self._split].file_instructions))
        self._records = builder.as_data_source(
            self._split, decoders={name: tfds.decode.SkipDecoding() for name in self._encoded}
        )

    def _choose(self, info: Any) -> None:
        """Notes the names of the features; raises ValueError where there are others."""
        raise NotImplementedError

    def _builder(self) -> tuple[Any, Any]:
        from google.protobuf import json_format
        from tensorflow_datasets.core import read_only_builder, registered

        if not epath.Path(self._data_dir).is_dir():
            raise ValueError(
                f"Cannot read tfds:{self._name}: the directory {self._data_dir} does not exist. "
                "Set --data_dir or TFDS_DATA_DIR to the directory in which TFDS prepared it."
            )
        try:
            builder = read_only_builder.builder_from_files(self._name, data_dir=self._data_dir)
        except registered.DatasetNotFoundError as error:
            raise ValueError(
                f"tfds:{self._name} is not prepared in {self._data_dir}. Prepare it there "
                f"({_DOCS}), or set --data_dir or TFDS_DATA_DIR to its directory."
            ) from error
        except json_format.ParseError as error:
            raise ValueError(
                f"The description of tfds:{self._name} in {self._data_dir} cannot be read "
                f"({error}). Copy or prepare the data set again."
            ) from error
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if "array_record" not in formats:
            raise ValueError(
                f"Invalid format of tfds:{self._name} in {self._data_dir}: expected array_record, "
                f"got {', '.join(sorted(formats))}, which has no random access. Convert it to "
                f"array_record ({_DOCS})."
            )
        return builder.info, builder

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> tuple[dict[str, Any], str]:
        """A record by feature, its image encoded, and its name for messages.

        Raises:
            OSError: a file of the data set is missing or damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} is out of range: the split has {len(self)} records.")
        key = f"tfds:{self._name}@{self._split} record {index}"
        try:
            record = self._records[index]
        # array_record's reader raises these for a missing, truncated or corrupted file.
        except (RuntimeError, ValueError, OSError) as error:
            raise OSError(
                f"Cannot read {key} in {self._data_dir} ({error}). A file of the prepared data set "
                "is missing or damaged. Copy or prepare the data set again."
            ) from error
        file_name = record.get("file_name")
        if isinstance(file_name, bytes):
            key += f" ({file_name.decode(errors='replace')})"
        return record, key

    # Worker processes open the data set themselves, because TFDS objects are not passed to them.
    def __getstate__(self) -> dict[str, str]:
        return {"name": self._name, "split": self._split, "data_dir": self._data_dir}

    def __setstate__(self, state: dict[str, str]) -> None:
        self._name, self._split = state["name"], state["split"]
        self._data_dir = state["data_dir"]
        self._open()


class TfdsSource(TfdsRecords):
    """An image classification data set that TFDS has prepared."""

    def _choose(self, info: Any) -> None:
        self._image, self._label = self._feature_names(info)
        self._class_names = tuple(info.features[self._label].names)

    def _feature_names(self, info: Any) -> tuple[str, str]:
        """Returns the names of the image feature and the label feature."""
        import tensorflow_datasets as tfds

        image, label = (info.supervised_keys or ("image", "label"))[:2]
        features = dict(info.features)
        if not (
            isinstance(features.get(image), tfds.features.Image)
            and isinstance(features.get(label), tfds.features.ClassLabel)
        ):
            raise ValueError(
                f"tfds:{self._name} is not an image classification data set: expected an image and "
                f"a class label, got the features {', '.join(features)}."
            )
        return image, label

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes of the label feature, including classes absent from the split."""
        return len(self._class_names)

    def __getitem__(self, index: int) -> Example:
        record, key = self.record(index)
        return Example(record[self._image], int(record[self._label]), key)

    def __repr__(self) -> str:
        return (
            f"TfdsSource({self._name}@{self._split} in {self._data_dir}): {len(self)} images, "
            f"{self.num_classes} classes"
        )


def _allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, if `count` record files would exceed it.

    A file stays open after the first read from it. ImageNet's training split has 1,024 files, which
    is the soft limit of many systems.
    """
    needed = count + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(
            f"The data set has {count} files, but this process may only open {hard}. Raise the "
            f"limit to {needed} (ulimit -Hn), or prepare the data set in fewer files."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
