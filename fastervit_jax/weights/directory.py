"""Converted weights on disk: a directory with `weights.safetensors` and `metadata.json`.

Converted weights are stored as safetensors, not as an Orbax checkpoint (which training uses):

- The file contains only numbers. Reading it cannot run code.
- Many tools read it.
- It opens immediately, and single arrays can be read.

`metadata.json` describes the arrays and contains a SHA-256 of each one.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_jax.data.preprocessing import Preprocessing
from fastervit_jax.weights.tensors import StoredTensor, joined

FORMAT = "fastervit_jax weights"
FORMAT_VERSION = 1
METADATA, ARRAYS = "metadata.json", "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """Describes weights.

    Attributes:
        model: official name of the network.
        overrides: options that differ from the defaults of that network.
        preprocessing: preprocessing of the images.
        class_names: names in the order of the logits, or None.
        source: origin of the weights, such as file name and SHA-256, as JSON values.
    """

    model: str
    overrides: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    source: dict[str, Any] = dataclasses.field(default_factory=dict)


class DamagedWeightsError(ValueError):
    """A converted directory is damaged. The message names the damaged array if it is known."""


def is_converted(path: str | Path) -> bool:
    """Returns whether `path` is a directory that `save_arrays` wrote."""
    try:
        return json.loads((Path(path) / METADATA).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def save_arrays(
    directory: str | Path,
    arrays: Mapping[str, np.ndarray],
    info: WeightsInfo,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a converted directory atomically.

    The files are written to a temporary directory, which is then renamed. A process that is killed
    leaves the old directory or none.

    Args:
        directory: the directory to write. Missing parents are created.
        arrays: float32 arrays by dotted name, in our layout.
        info: description of the weights.
        overwrite: replace an existing converted directory.

    Raises:
        FileExistsError: the path exists and may not be replaced.
        ValueError: an array is not float32, or contains NaN or infinity.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"Invalid dtype of {name}: expected float32, got {array.dtype}.")
        check_finite(name, array)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(info),
        "arrays": {
            name: {"shape": array.shape, "sha256": _sha256(array)} for name, array in arrays.items()
        },
    }
    with staged_directory(directory, overwrite=overwrite) as beside:
        from safetensors.numpy import save_file

        save_file(arrays, beside / ARRAYS)
        (beside / METADATA).write_text(_readable_json(metadata))


@contextlib.contextmanager
def staged_directory(directory: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty temporary directory, and renames it to `directory` if there is no error.

    Raises:
        FileExistsError: the path exists and may not be replaced (see `check_writable`).
    """
    directory = Path(directory)
    check_writable(directory, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield beside
        readable = 0o666 & ~_umask()  # temporary files are created private
        for written in beside.iterdir():
            written.chmod(readable)
            flush(written)
        beside.chmod(0o777 & ~_umask())
        flush(beside)
        _put_in_place(beside, directory)
        flush(directory.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _readable_json(metadata: dict[str, Any]) -> str:
    """Returns JSON with one line per value and per array."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in metadata.items()]
    arrays = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in metadata["arrays"].items()]
    lines[-1] = '"arrays": {\n' + ",\n".join(arrays) + "\n }"
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def check_writable(directory: str | Path, *, overwrite: bool) -> None:
    """Raises FileExistsError if `save_arrays` may not write to `directory`."""
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not is_converted(directory):
        raise FileExistsError(
            f"{directory} exists and is not a converted directory. Choose another path."
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} exists. Choose another path, or use --overwrite (overwrite=True)."
        )


def _put_in_place(new: Path, directory: Path) -> None:
    """Renames `new` to `directory` and removes the old directory."""
    if not directory.exists():
        new.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Flushes a file or the entries of a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot flush directories
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_arrays(directory: str | Path) -> tuple[dict[str, StoredTensor], WeightsInfo]:
    """Opens a converted directory. Each array is checked against its SHA-256 when it is read.

    Raises:
        DamagedWeightsError: a file or array is missing or damaged.
        ValueError: the directory has another format version.
    """
    directory = Path(directory)
    metadata = _read_metadata(directory)
    try:
        info = _info(metadata)
        described = {
            name: (tuple(array["shape"]), array["sha256"])
            for name, array in metadata["arrays"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedWeightsError(
            f"{directory / METADATA} is damaged: {error!r}. Convert the weights again."
        ) from None
    return _open_file(directory / ARRAYS, described), info


def _info(metadata: dict[str, Any]) -> WeightsInfo:
    """The description of the weights. Raises KeyError, TypeError or ValueError where it is none."""
    info = WeightsInfo(
        model=metadata["model"],
        overrides=tupled(metadata["overrides"]),
        preprocessing=Preprocessing(**tupled(metadata["preprocessing"])),
        class_names=tupled(metadata["class_names"]),
        source=metadata["source"],
    )
    if not isinstance(info.overrides, dict) or not isinstance(info.source, dict):
        raise TypeError("overrides and source: expected objects")
    names = info.class_names
    if names is not None and not (
        isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    ):
        raise TypeError("class_names: expected null or a list of names")
    return info


def _read_metadata(directory: Path) -> dict[str, Any]:
    path = directory / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{directory} is not a converted directory: {error}.") from None
    except ValueError as error:
        raise DamagedWeightsError(
            f"{path} is damaged ({error}). Convert the weights again."
        ) from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe converted weights. Convert the weights again.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Invalid format version of {directory}: expected {FORMAT_VERSION}, got "
            f"{metadata.get('format_version')}. Convert the weights again, or update fastervit_jax."
        )
    return metadata


def _open_file(
    path: Path, described: dict[str, tuple[tuple[int, ...], str]]
) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedWeightsError(_why_unreadable(path, error)) from None
    for name, (shape, _) in described.items():
        if found.get(name) != shape:
            raise DamagedWeightsError(
                f"{path} is damaged: expected {name} of shape {shape}, got {found.get(name)}."
            )
    extra = found.keys() - described.keys()
    if extra:
        raise DamagedWeightsError(
            f"{path} is damaged: metadata.json does not list {joined(sorted(extra))}."
        )

    def reader(name: str, sha256: str):
        def read() -> np.ndarray:
            array = file.get_tensor(name)
            if array.dtype != np.float32 or _sha256(array) != sha256:
                raise DamagedWeightsError(
                    f"{path} is damaged: the SHA-256 of {name} differs from the one in "
                    f"metadata.json. Convert or copy the weights again."
                )
            return array

        return read

    return {
        name: StoredTensor(shape, "float32", reader(name, sha256))
        for name, (shape, sha256) in described.items()
    }


def _why_unreadable(path: Path, error: Exception) -> str:
    """Returns an error message. For a truncated file, it names the first missing array."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 28)))
        size = path.stat().st_size - 8 - length
        lost = [
            (entry["data_offsets"], name)
            for name, entry in header.items()
            if name != "__metadata__" and entry["data_offsets"][1] > size
        ]
        if lost:
            return (
                f"{path} is truncated. Missing arrays: {len(lost)}, beginning with {min(lost)[1]}. "
                "Convert or copy the weights again."
            )
    return f"{path} is damaged ({error}). Convert or copy the weights again."


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises ValueError if an array contains NaN or infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        count = array.size - np.count_nonzero(finite)
        raise ValueError(
            f"{name} contains {count} NaN or infinite values out of {array.size}. Training "
            "diverged, or the file is damaged."
        )


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data if array.ndim else array.tobytes()).hexdigest()


def tupled(value):
    """Converts lists to tuples, recursively."""
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tupled(item) for item in value)
    return value
