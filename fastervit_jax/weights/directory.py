"""Converted weights on disk: a directory of `weights.safetensors` and `metadata.json`.

Safetensors rather than an Orbax checkpoint (which training uses): the file is only numbers, nothing
in it can run; any tool reads it; one array can be read without the others; and it opens at once.
`metadata.json` says what the arrays are and holds a SHA-256 of each.
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
    """What weights belong to.

    Attributes:
        model: the official name of the network.
        overrides: options that differ from that network's own.
        preprocessing: how it wants its images.
        class_names: in the order of the logits, or None.
        source: where they come from: file name, SHA-256 and the like, as JSON values.
    """

    model: str
    overrides: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    source: dict[str, Any] = dataclasses.field(default_factory=dict)


class DamagedWeightsError(ValueError):
    """A converted directory is not as it was written; the message names the array where it can."""


def is_converted(path: str | Path) -> bool:
    """Whether this is a directory that `save_arrays` wrote."""
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
    """Writes a converted directory, whole or not at all.

    It is written beside its place and renamed, so that a process killed at any moment leaves the
    old directory or none.

    Args:
        directory: where to; its parent is made.
        arrays: float32 by dotted name, in our layout.
        info: what they belong to.
        overwrite: replace a converted directory that stands there.

    Raises:
        FileExistsError: something stands there.
        ValueError: an array is not float32, or not finite.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype}: weights are saved in float32.")
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
    """An empty directory beside its place, put there when the block ends without an error.

    Raises:
        FileExistsError: something stands there that may not be replaced (`check_writable`).
    """
    directory = Path(directory)
    check_writable(directory, overwrite=overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        yield beside
        readable = 0o666 & ~_umask()  # temporary and safetensors files are private at first
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
    """JSON with a line for each value, and for each array."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in metadata.items()]
    arrays = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in metadata["arrays"].items()]
    lines[-1] = '"arrays": {\n' + ",\n".join(arrays) + "\n }"
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def check_writable(directory: str | Path, *, overwrite: bool) -> None:
    """Raises FileExistsError where `save_arrays` would not write."""
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if not is_converted(directory):
        raise FileExistsError(
            f"{directory} exists and is not a converted directory: choose another place."
        )
    if not overwrite:
        raise FileExistsError(
            f"{directory} exists: choose another place, or --overwrite (overwrite=True)."
        )


def _put_in_place(new: Path, directory: Path) -> None:
    """Renames a finished directory to its place, and removes what stood there."""
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
    """Makes sure that a file, or a directory's entries, are on the disk."""
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
    """Opens a converted directory; each array is checked against its SHA-256 when it is read.

    Raises:
        DamagedWeightsError: something is missing or damaged.
        ValueError: it is of another version.
    """
    directory = Path(directory)
    metadata = _read_metadata(directory)
    try:
        info = WeightsInfo(
            model=metadata["model"],
            overrides=tupled(metadata["overrides"]),
            preprocessing=Preprocessing(**tupled(metadata["preprocessing"])),
            class_names=tupled(metadata["class_names"]),
            source=metadata["source"],
        )
        described = {
            name: (tuple(array["shape"]), array["sha256"])
            for name, array in metadata["arrays"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedWeightsError(
            f"{directory / METADATA} is damaged: {error!r}. Convert again."
        ) from None
    return _open_file(directory / ARRAYS, described), info


def _read_metadata(directory: Path) -> dict[str, Any]:
    path = directory / METADATA
    try:
        metadata = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{directory} is no converted directory: {error}.") from None
    except ValueError as error:
        raise DamagedWeightsError(f"{path} is damaged ({error}): convert again.") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe converted weights: convert again.")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{directory} has format version {metadata.get('format_version')}; this fastervit_jax "
            f"reads {FORMAT_VERSION}: convert again, or update."
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
                f"{path} is damaged: {name} should have shape {shape}, but has {found.get(name)}."
            )
    extra = found.keys() - described.keys()
    if extra:
        raise DamagedWeightsError(
            f"{path} is damaged: metadata.json knows nothing of {joined(sorted(extra))}."
        )

    def reader(name: str, sha256: str):
        def read() -> np.ndarray:
            array = file.get_tensor(name)
            if array.dtype != np.float32 or _sha256(array) != sha256:
                raise DamagedWeightsError(
                    f"{path} is damaged: {name} is not what was written (its SHA-256 differs). "
                    f"Convert or copy it again."
                )
            return array

        return read

    return {
        name: StoredTensor(shape, "float32", reader(name, sha256))
        for name, (shape, sha256) in described.items()
    }


def _why_unreadable(path: Path, error: Exception) -> str:
    """Names the first array that is lost, where a file was cut off."""
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
                f"{path} is cut off: {len(lost)} arrays are lost, from {min(lost)[1]} on. Convert "
                f"or copy it again."
            )
    return f"{path} is damaged ({error}): convert or copy it again."


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises ValueError where an array has NaN or infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        count = array.size - np.count_nonzero(finite)
        raise ValueError(
            f"{name} has {count} values of {array.size} that are NaN or infinite: training "
            f"diverged, or the file is damaged."
        )


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data if array.ndim else array.tobytes()).hexdigest()


def tupled(value):
    """JSON's lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tupled(item) for item in value)
    return value
