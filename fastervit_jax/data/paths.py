"""Paths on this machine or in a bucket (`gs://…`), through `etils.epath`."""

import uuid

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is a URL, such as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path, with `~` expanded. URLs are returned unchanged."""
    path = epath.Path(path)
    return path if is_remote(path) else path.expanduser().resolve()


def write_whole(path: epath.PathLike, text: str) -> None:
    """Writes a text file atomically: completely or not at all.

    Local files are written to a temporary file of their own, which is then renamed. So several
    processes may write the same file. Buckets write objects atomically by themselves.
    """
    path = epath.Path(path)
    if is_remote(path):
        path.write_text(text)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
