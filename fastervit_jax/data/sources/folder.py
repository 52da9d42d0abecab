"""Images in folders, one a class: `root/n01440764/any/depth/x.JPEG`."""

import os
from collections.abc import Iterator

import numpy as np
from etils import epath

from fastervit_jax.data.paths import is_remote
from fastervit_jax.data.sources.source import Example

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Names of splits. A folder of nothing else is the parent of the one that was meant.
_SPLITS = {"train", "val", "valid", "validation", "test"}


class FolderSource:
    """The images below `root/CLASS/`, at any depth, sorted by class and then by path.

    File names end in .jpg, .jpeg, .png or .webp, in any case; what the bytes are is found out when
    they are decoded. Names that start with a dot are passed over. Symbolic links are followed.
    Labels are the classes' places in sorted order.
    """

    def __init__(self, root: str):
        """Lists the folder, which may be remote (`gs://…`).

        Raises:
          ValueError: it does not hold images in class folders; the message says what is amiss.
        """
        self._root = epath.Path(root).expanduser()
        if not self._root.is_dir():
            raise ValueError(f"There is no folder {root}: correct the path after 'folder:'.")
        images = _list_images(self._root)
        self._check_classes(images)
        self._class_names = tuple(sorted(images))
        counts = [len(images[name]) for name in self._class_names]
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # One string and offsets: a list of 1.28 million strings would cost every worker process
        # some 130 MB.
        paths = [
            os.fsencode(f"{name}/{path}")
            for name in self._class_names
            for path in sorted(images[name])
        ]
        self._paths = b"".join(paths)
        self._starts = np.cumsum([0] + [len(path) for path in paths])

    def _check_classes(self, images: dict[str, list[str]]) -> None:
        if not images:
            raise ValueError(
                f"{self._root} holds no class folders: it must hold one folder a class, with the "
                "images inside."
            )
        if set(images) <= _SPLITS:
            raise ValueError(
                f"{self._root} holds the folders {', '.join(sorted(images))}, which look like "
                "splits, not classes: name one of them after 'folder:'."
            )
        empty = sorted(name for name, paths in images.items() if not paths)
        if empty:
            others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise ValueError(
                f"The class folder {self._root / empty[0]}{others} holds no image "
                f"({', '.join(_SUFFIXES)}): add images or remove it."
            )

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
        path = self._root / os.fsdecode(self._paths[self._starts[index] : self._starts[index + 1]])
        return Example(path.read_bytes(), int(self._labels[index]), str(path))

    def __repr__(self) -> str:
        return f"FolderSource({str(self._root)!r}): {len(self)} images, {self.num_classes} classes"


def _list_images(root: epath.Path) -> dict[str, list[str]]:
    """Paths of the images in each class folder, relative to it, by class."""
    if is_remote(root):
        return _list_remote(root)
    with os.scandir(root) as entries:
        classes = [entry.name for entry in entries if _visible(entry.name) and entry.is_dir()]
    images = {}
    for name in classes:
        folder = os.path.join(root, name)
        images[name] = [path[len(folder) + 1 :] for path in _walk(folder, ())]
    return images


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Images below a local folder; `above` are the real paths of the folders it was reached by."""
    here = os.path.realpath(folder)
    if here in above:
        raise ValueError(
            f"The symbolic link {folder} leads back into a folder above it: remove the link."
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _visible(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif _is_image(entry.name):
                if not entry.is_file():
                    raise ValueError(
                        f"{entry.path} is no file that can be read (a symbolic link to nothing?): "
                        "restore or remove it."
                    )
                yield entry.path


def _list_remote(root: epath.Path) -> dict[str, list[str]]:
    """As `_list_images`, asking a remote store as little as can be: one listing a folder."""
    return {
        entry.name: list(_walk_remote(entry, ""))
        for entry in root.iterdir()
        if _visible(entry.name) and entry.is_dir()
    }


def _walk_remote(folder: epath.Path, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if not _visible(entry.name):
            continue
        if _is_image(entry.name):
            yield prefix + entry.name
        elif entry.is_dir():
            yield from _walk_remote(entry, f"{prefix}{entry.name}/")
