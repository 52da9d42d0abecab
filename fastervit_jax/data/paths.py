"""Files of a run, on this machine or in a bucket (`gs://…`), through `etils.epath`."""

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is a URL, such as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The same place for any working directory; `epath` itself would take `gs:` for a folder."""
    path = epath.Path(path)
    return path if is_remote(path) else path.resolve()


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file whole or not at all.

    An object in a bucket is there once it is whole, and cannot be renamed: there is no need to.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
