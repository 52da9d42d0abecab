"""Paths on this machine or in a bucket (`gs://…`), through `etils.epath`."""

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is a URL, such as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path. URLs are returned unchanged."""
    path = epath.Path(path)
    return path if is_remote(path) else path.resolve()


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file atomically: completely or not at all.

    Local files are written to a temporary file, which is then renamed. Buckets write objects
    atomically by themselves.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
