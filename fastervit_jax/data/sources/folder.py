"""Images in one folder per class: `root/n01440764/any/depth/x.JPEG`."""

import collections
import os
from collections.abc import Iterator

import numpy as np
from absl import logging
from etils import epath

from fastervit_jax.data.images import IMAGE_SUFFIXES
from fastervit_jax.data.paths import is_remote
from fastervit_jax.data.sources.source import Example, natural_key

# Names of splits. A folder that contains only these is the parent of the intended folder.
_SPLITS = {"train", "val", "valid", "validation", "test"}


class FolderSource:
    """The images in `root/CLASS/`, at any depth, sorted by class and then by path.

    Files are images by their ending (`data.images.IMAGE_SUFFIXES`), in upper or lower case. The
    content of a file is only checked when it is decoded. The log says which files are left out.
    Names that start with a dot, and thumbnail folders of file servers (`@eaDir`), are ignored.
    Symbolic links are followed. The label of a class is its index in the class names in natural
    order, as in timm: `1, 2, 10`; `apple, Banana`.
    """

    def __init__(self, root: str):
        """Lists the folder, which may be remote (`gs://…`).

        Raises:
            ValueError: the folder does not contain class folders with images. The message says
                what is wrong.
        """
        self._root = epath.Path(root).expanduser()
        if not self._root.is_dir():
            raise ValueError(f"Folder not found: {root}. Correct the path after 'folder:'.")
        left_out: collections.Counter[str] = collections.Counter()
        images = _list_images(self._root, left_out)
        self._check_classes(images)
        if left_out:
            ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
            kinds = ", ".join(f"{count} {ending}" for ending, count in ordered)
            logging.warning(
                "Left out %d files that are not images we read, in %s: %s",
                left_out.total(),
                self._root,
                kinds,
            )
        self._class_names = tuple(sorted(images, key=natural_key))
        counts = [len(images[name]) for name in self._class_names]
        self._labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        # All paths are stored in one string with offsets. A list of 1.28 million strings would take
        # about 130 MB in every worker process.
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
                f"No class folders in {self._root}: expected one folder per class, with the images "
                "inside."
            )
        if set(images) <= _SPLITS:
            raise ValueError(
                f"{self._root} contains the folders {', '.join(sorted(images))}, which look like "
                "splits, not classes. Name one of them after 'folder:'."
            )
        empty = sorted(name for name, paths in images.items() if not paths)
        if empty:
            others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise ValueError(
                f"The class folder {self._root / empty[0]}{others} contains no images "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}). Add images or remove the folder."
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the class folders, in natural order."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of class folders."""
        return len(self._class_names)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"Image {index} is out of range: the folder has {len(self)} images.")
        path = self._root / os.fsdecode(self._paths[self._starts[index] : self._starts[index + 1]])
        return Example(path.read_bytes(), int(self._labels[index]), str(path))

    def __repr__(self) -> str:
        return f"FolderSource({str(self._root)!r}): {len(self)} images, {self.num_classes} classes"


def _list_images(root: epath.Path, left_out: collections.Counter[str]) -> dict[str, list[str]]:
    """Returns the paths of the images in each class folder, relative to that folder.

    Counts other files in `left_out`, by their ending.
    """
    if is_remote(root):
        return _list_remote(root, left_out)
    with os.scandir(root) as entries:
        classes = [entry.name for entry in entries if _visible(entry.name) and entry.is_dir()]
    images = {}
    for name in classes:
        folder = os.path.join(root, name)
        images[name] = [path[len(folder) + 1 :] for path in _walk(folder, (), left_out)]
    return images


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "@eaDir"


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "without an ending"


def _walk(folder: str, above: tuple[str, ...], left_out: collections.Counter[str]) -> Iterator[str]:
    """Yields the images in a local folder. `above` are the real paths of its parent folders."""
    here = os.path.realpath(folder)
    if here in above:
        raise ValueError(
            f"The symbolic link {folder} points to one of its parent folders. Remove the link."
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _visible(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here), left_out)
            elif _is_image(entry.name):
                if not entry.is_file():
                    raise ValueError(
                        f"{entry.path} is not a readable file; it may be a broken symbolic link. "
                        "Restore or remove it."
                    )
                yield entry.path
            else:
                left_out[_ending(entry.name)] += 1


def _list_remote(root: epath.Path, left_out: collections.Counter[str]) -> dict[str, list[str]]:
    """Does the same as `_list_images` with one request per folder of a remote store."""
    return {
        entry.name: list(_walk_remote(entry, "", left_out))
        for entry in root.iterdir()
        if _visible(entry.name) and entry.is_dir()
    }


def _walk_remote(
    folder: epath.Path, prefix: str, left_out: collections.Counter[str]
) -> Iterator[str]:
    for entry in folder.iterdir():
        if not _visible(entry.name):
            continue
        if _is_image(entry.name):
            yield prefix + entry.name
        elif entry.is_dir():
            yield from _walk_remote(entry, f"{prefix}{entry.name}/", left_out)
        else:
            left_out[_ending(entry.name)] += 1
