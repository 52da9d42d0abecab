"""Images that a CSV file lists: columns `file` and `label`."""

import csv
import io

import numpy as np
from etils import epath

from fastervit_jax.data.paths import is_remote
from fastervit_jax.data.sources.source import Example, natural_key

_COLUMNS = ("file", "label")


class CsvSource:
    """The images of a CSV file, in its order. Other columns are ignored.

    The classes are the different labels, in natural order: `1, 2, 10`; `apple, Banana`.
    """

    def __init__(self, path: str, root: str | None = None):
        """Reads the table; both paths may be remote (`gs://…`).

        Args:
            path: the CSV file, UTF-8, with a header row.
            root: directory of relative file names; by default the directory of the CSV file.

        Raises:
            ValueError: the table is missing, empty, has no such columns, or names a missing file.
        """
        table = epath.Path(path).expanduser()
        if not table.is_file():
            raise ValueError(f"File not found: {path}. Correct the path after 'csv:'.")
        self._root = epath.Path(root).expanduser() if root else table.parent
        reader = csv.DictReader(io.StringIO(table.read_bytes().decode("utf-8-sig")))
        header = reader.fieldnames or []
        missing = [column for column in _COLUMNS if column not in header]
        if missing:
            raise ValueError(
                f"Invalid table {path}: expected the columns file and label, got "
                f"{', '.join(header) or 'no header'}."
            )
        rows = [(row["file"], row["label"]) for row in reader]
        if not rows:
            raise ValueError(f"Invalid table {path}: expected at least one row below the header.")
        for number, (file, label) in enumerate(rows, 2):
            if not file or not label:
                raise ValueError(f"Invalid row {number} of {path}: file or label is empty.")
        self._files = [file for file, _ in rows]
        self._class_names = tuple(sorted({label for _, label in rows}, key=natural_key))
        index = {name: number for number, name in enumerate(self._class_names)}
        self._labels = np.array([index[label] for _, label in rows], np.int32)
        if not is_remote(self._root):
            absent = [file for file in self._files if not (self._root / file).is_file()]
            if absent:
                raise ValueError(
                    f"Invalid table {path}: {len(absent)} of {len(rows)} files are missing in "
                    f"{self._root}, the first is {absent[0]}."
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The different labels, in natural order."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return len(self._class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"Image {index} is out of range: the table has {len(self)} images.")
        path = self._root / self._files[index]
        return Example(path.read_bytes(), int(self._labels[index]), str(path))
