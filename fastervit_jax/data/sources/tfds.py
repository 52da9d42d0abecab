"""Image-classification sets that TensorFlow Datasets has prepared as array_record.

Reading one needs neither TensorFlow nor the set's builder code: TFDS describes a prepared set in
files beside the records.
"""

import os
import re
import resource
from typing import Any

from etils import epath

from fastervit_jax.data.sources.source import Example

_DOCS = "docs/data.md shows the command"
_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")


class TfdsSource:
    """`NAME[/CONFIG[:VERSION]]@SPLIT` of the sets prepared below `data_dir`."""

    def __init__(self, spec: str, *, data_dir: str | None = None):
        """Opens a prepared set.

        Args:
          spec: such as `imagenet2012@train[:99%]` or
            `imagenet_v2/matched-frequency:3.0.0@test`.
          data_dir: where the prepared sets lie; by default `TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.

        Raises:
          ValueError: the set is missing, not in array_record, has no such split, or is no image
            classification.
        """
        self._name, _, self._split = spec.partition("@")
        if not _NAME.fullmatch(self._name) or not self._split:
            raise ValueError(
                f"tfds:{spec} does not name a data set and a split: write "
                "tfds:NAME[/CONFIG[:VERSION]]@SPLIT, for example tfds:imagenet2012@train."
            )
        self._data_dir = os.path.expanduser(
            data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        )
        self._open()

    def _open(self) -> None:
        import tensorflow_datasets as tfds

        info, builder = self._builder()
        self._image, self._label = self._feature_names(info)
        self._class_names = tuple(info.features[self._label].names)
        try:
            empty = info.splits[self._split].num_examples == 0
        except ValueError as error:
            raise ValueError(
                f"tfds:{self._name} has no split {self._split!r}: choose from "
                f"{', '.join(sorted(info.splits))}, or a slice of one such as train[:99%]."
            ) from error
        if empty:
            raise ValueError(f"tfds:{self._name}@{self._split} holds no images: widen the slice.")
        _allow_open_files(len(info.splits[self._split].file_instructions))
        self._records = builder.as_data_source(
            self._split, decoders={self._image: tfds.decode.SkipDecoding()}
        )

    def _builder(self) -> tuple[Any, Any]:
        from google.protobuf import json_format
        from tensorflow_datasets.core import read_only_builder, registered

        if not epath.Path(self._data_dir).is_dir():
            raise ValueError(
                f"There is no directory {self._data_dir} to read tfds:{self._name} from: set "
                "--data_dir or TFDS_DATA_DIR to where TFDS prepared it."
            )
        try:
            builder = read_only_builder.builder_from_files(self._name, data_dir=self._data_dir)
        except registered.DatasetNotFoundError as error:
            raise ValueError(
                f"tfds:{self._name} is not prepared below {self._data_dir}: prepare it there "
                f"({_DOCS}), or set --data_dir or TFDS_DATA_DIR to where it is."
            ) from error
        except json_format.ParseError as error:
            raise ValueError(
                f"The description of tfds:{self._name} below {self._data_dir} cannot be read "
                f"({error}): copy or prepare the set again."
            ) from error
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if "array_record" not in formats:
            raise ValueError(
                f"tfds:{self._name} is prepared below {self._data_dir} as "
                f"{', '.join(sorted(formats))}, which cannot be read at random: convert it to "
                f"array_record ({_DOCS})."
            )
        return builder.info, builder

    def _feature_names(self, info: Any) -> tuple[str, str]:
        """Names of the image and the label among the set's features."""
        import tensorflow_datasets as tfds

        image, label = (info.supervised_keys or ("image", "label"))[:2]
        features = dict(info.features)
        if not (
            isinstance(features.get(image), tfds.features.Image)
            and isinstance(features.get(label), tfds.features.ClassLabel)
        ):
            raise ValueError(
                f"tfds:{self._name} is no image classification (an image and a class label): its "
                f"features are {', '.join(features)}."
            )
        return image, label

    @property
    def class_names(self) -> tuple[str, ...]:
        """The label feature's names, in the order of the labels."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """How many classes the label feature knows, present in the split or not."""
        return len(self._class_names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of a split of {len(self)}.")
        key = f"tfds:{self._name}@{self._split} record {index}"
        try:
            record = self._records[index]
        # What array_record's reader raises for a missing, short or corrupted file.
        except (RuntimeError, ValueError, OSError) as error:
            raise OSError(
                f"Cannot read {key} below {self._data_dir} ({error}): a file of the prepared set "
                "is missing or damaged; copy or prepare it again."
            ) from error
        file_name = record.get("file_name")
        if isinstance(file_name, bytes):
            key += f" ({file_name.decode(errors='replace')})"
        return Example(record[self._image], int(record[self._label]), key)

    # Worker processes open the set anew instead of receiving TFDS's own objects.
    def __getstate__(self) -> dict[str, str]:
        return {"name": self._name, "split": self._split, "data_dir": self._data_dir}

    def __setstate__(self, state: dict[str, str]) -> None:
        self._name, self._split = state["name"], state["split"]
        self._data_dir = state["data_dir"]
        self._open()

    def __repr__(self) -> str:
        return (
            f"TfdsSource({self._name}@{self._split} in {self._data_dir}): {len(self)} images, "
            f"{self.num_classes} classes"
        )


def _allow_open_files(count: int) -> None:
    """Raises this process's limit of open files where `count` record files would exceed it.

    Every file of a set stays open once it has been read from; ImageNet's training split has 1,024,
    which is many systems' soft limit.
    """
    needed = count + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(
            f"The data set has {count} files, and this process may open only {hard}: raise the "
            f"limit to {needed} (ulimit -Hn), or prepare the set in fewer files."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
