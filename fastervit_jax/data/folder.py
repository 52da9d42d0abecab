"""Images in folders, one a class: `root/n01440764/any/depth/x.JPEG`."""

import os

import numpy as np
from etils import epath

from fastervit_jax.data.sources import Example

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class FolderSource:
    """The images below `root/CLASS/`, at any depth, sorted by class and then by path.

    File names end in .jpg, .jpeg, .png or .webp, in any case; names that start with a dot are
    passed over. Symbolic links are followed. Labels are the classes' places in sorted order.
    """

    def __init__(self, root: str):
        """Lists the folder. Raises ValueError where it does not hold images in class folders."""
        self._root = epath.Path(root)
        if not self._root.is_dir():
            raise ValueError(f"There is no folder {root}: correct the path after 'folder:'.")
        classes = sorted(
            entry.name
            for entry in self._root.iterdir()
            if not entry.name.startswith(".") and entry.is_dir()
        )
        if not classes:
            raise ValueError(
                f"{root} holds no class folders: it must hold one folder a class, with the images "
                "inside."
            )
        paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(_images_below(self._root / name, name))
            if not found:
                raise ValueError(
                    f"The class folder {self._root / name} holds no image "
                    f"({', '.join(_SUFFIXES)}): add images or remove the folder."
                )
            paths += found
            labels += [label] * len(found)
        self._class_names = tuple(classes)
        self._labels = np.array(labels, np.int32)
        # One string and offsets: a list of 1.28 million strings would cost every worker process
        # 130 MB.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class folders' names, sorted."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """How many class folders there are."""
        return len(self._class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"Image {index} of a folder of {len(self)}.")
        start = self._ends[index - 1] if index else 0
        relative = os.fsdecode(self._paths[start : self._ends[index]])
        path = self._root / relative
        return Example(path.read_bytes(), int(self._labels[index]), str(path))

    def __repr__(self) -> str:
        return f"FolderSource({str(self._root)!r}): {len(self)} images, {self.num_classes} classes"


def _images_below(folder: epath.Path, relative: str) -> list[str]:
    """Paths (relative to the root, with `/`) of the images below a folder."""
    found = []
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        path = f"{relative}/{entry.name}"
        if entry.name.lower().endswith(_SUFFIXES) and not entry.is_dir():
            found.append(path)
        elif entry.is_dir():
            found += _images_below(entry, path)
    return found
