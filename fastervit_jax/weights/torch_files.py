"""Read official checkpoints without running code from them.

Torch files are only opened with torch's safe loader. It builds tensors and plain containers and
rejects everything else. The only additional class is `argparse.Namespace`, in which the official
training script stores its arguments.
"""

import argparse
import dataclasses
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastervit_jax.weights.names import main_name
from fastervit_jax.weights.tensors import StoredTensor, joined

_FORMS = ("state_dict", "model")
"""Keys of the weights in a checkpoint, in the order of the official loader."""

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """Tensors of an official checkpoint.

    Attributes:
        tensors: tensors by official name without prefixes. The carrier token convolution has two
            official names; only `…to_global_feature.pos.*` is kept.
        weights: key of the weights in the file, or "" if the file contains only tensors.
        notes: sentences to show to the user.
    """

    tensors: dict[str, StoredTensor]
    weights: str
    notes: tuple[str, ...]


def read_torch_checkpoint(path: str | Path, *, ema: bool = False) -> OfficialCheckpoint:
    """Opens a torch or safetensors file. Tensors are memory-mapped and read later.

    Args:
        path: a checkpoint of the official code or its training script. It is a dictionary with
            `state_dict` or `model`, a dictionary of tensors, or a safetensors file.
        ema: use the EMA of the weights, `state_dict_ema`.

    Raises:
        ValueError: the file is damaged, is not a checkpoint, or cannot be read without running
            code.
        ImportError: torch is needed and not installed.
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    kind = _kind(path)
    notes: list[str] = []
    if kind == "safetensors":
        if ema:
            raise ValueError(f"{path} is a safetensors file and has no state_dict_ema. Omit --ema.")
        tensors, weights = _open_safetensors(path), ""
    else:
        if kind == "zip":
            _check_archive(path)
        content = _load_safely(path, memory_map=kind == "zip")
        state, weights, notes = _weights_of(content, path, ema)
        tensors = {name: _from_torch(name, tensor, path) for name, tensor in state.items()}
    if not tensors:
        raise ValueError(f"{path} contains no tensors.")
    tensors, more_notes = _without_prefixes(tensors)
    return OfficialCheckpoint(_each_once(tensors, path), weights, tuple(notes + more_notes))


def _kind(path: Path) -> str:
    """Returns the kind of a file from its first bytes: "zip", "pickle" or "safetensors"."""
    if not path.exists():
        raise FileNotFoundError(f"File not found: {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a checkpoint file.")
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty. Download or copy it again.")
    with path.open("rb") as file:
        start = file.read(64)
    # A safetensors file begins with the length of its JSON header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return "safetensors"
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    hint = ""
    if start.startswith(b"version https://git-lfs"):
        hint = " It is a git-lfs pointer. Download the file with `git lfs pull`."
    elif start.lstrip().startswith(b"<"):
        hint = " It looks like a web page. Download it again."
    raise ValueError(
        f"{path} is not a torch or safetensors file. It begins with {start[:16]!r}.{hint}"
    )


def _check_archive(path: Path) -> None:
    """Checks that a zip file is complete, was written by torch, and has valid checksums."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is truncated: the end of the archive is missing. Download or copy it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            parts = {name.split("/", 1)[1] for name in names if "/" in name}
            if "constants.pkl" in parts:
                raise ValueError(
                    f"{path} is a TorchScript program, not a checkpoint. Save the model's "
                    "state_dict() with torch.save."
                )
            if "data.pkl" not in parts:
                raise ValueError(
                    f"{path} is a zip archive that torch.save did not write. It contains "
                    f"{joined(names, 3) or 'nothing'}."
                )
            for name in names:
                with archive.open(name) as record:
                    while record.read(_CHUNK):
                        pass
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged ({error}). Download or copy it again.") from None


def _load_safely(path: Path, *, memory_map: bool):
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"Reading {path} needs PyTorch, which is not installed. Run pip install torch; the CPU "
            "build is enough. Converted directories do not need PyTorch."
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        # CVE-2025-32434: before 2.6, a file could run code despite `weights_only`.
        raise ImportError(
            f"torch {torch.__version__} cannot read files safely. Install torch 2.6 or newer."
        )
    import pickle

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise ValueError(
                f"{path} was rejected because reading it would run {wanted[1]}. A checkpoint only "
                "needs tensors and plain values. No code was run. If you trust the source of the "
                "file, save only its state_dict with torch.save."
            ) from None
        raise ValueError(
            f"{path} cannot be read safely. It contains more than tensors and plain values, or is "
            "damaged. No code was run."
        ) from None
    except (EOFError, OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unexpected end of file"
        raise ValueError(
            f"{path} is not a torch checkpoint, or is damaged ({reason}). Download or copy it "
            "again."
        ) from None


def _weights_of(content, path: Path, ema: bool) -> tuple[Mapping, str, list[str]]:
    """Returns the dictionary of tensors, its key in the file, and notes for the user."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"Invalid checkpoint {path}: expected a dictionary of tensors, got "
            f"{type(content).__name__}."
        )
    notes = []
    if ema:
        key = "state_dict_ema"
        if key not in content:
            raise ValueError(
                f"{path} has no EMA. Its keys are {joined(map(str, content))}. Omit --ema."
            )
    else:
        key = next((form for form in _FORMS if form in content), "")
        if "state_dict_ema" in content:
            notes.append("The file also contains an EMA (state_dict_ema). Use --ema to convert it.")
    state = content[key] if key else content
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path}: invalid {key!r}: expected a dictionary of tensors, got "
            f"{type(state).__name__}."
        )
    return state, key, notes


def _from_torch(name, tensor, path: Path) -> StoredTensor:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{path} is not a checkpoint of weights. Its entry {str(name)!r} is a "
            f"{type(tensor).__name__}, not a tensor, and it has no key {' or '.join(_FORMS)}."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ValueError(
            f"{path}: {name} is not a weight. It is a {tensor.dtype} {tensor.layout} tensor."
        )

    def read() -> np.ndarray:
        return tensor.detach().to(torch.float32).numpy()

    return StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)


_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy for safetensors)
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is a damaged or truncated safetensors file ({error}). Download or copy it "
            "again."
        ) from None
    tensors = {}
    for name in file.keys():  # noqa: SIM118  (not a dictionary)
        piece = file.get_slice(name)
        dtype = _SAFETENSORS_TYPES.get(piece.get_dtype())
        if dtype is None:
            raise ValueError(
                f"{path}: invalid dtype of {name}: expected one of "
                f"{', '.join(_SAFETENSORS_TYPES)}, got {piece.get_dtype()}."
            )

        def read(name=name) -> np.ndarray:
            return file.get_tensor(name).astype(np.float32)

        tensors[name] = StoredTensor(tuple(piece.get_shape()), dtype, read)
    return tensors


def _without_prefixes(
    tensors: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Removes `module.` if all names have it. Keeps only `encoder.*` if such names exist."""
    notes = []
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("encoder.") for name in tensors):
        others = [name for name in tensors if not name.startswith("encoder.")]
        if others:
            notes.append(
                f"Skipped, because the name does not begin with `encoder.`: {joined(others)}."
            )
        tensors = {
            name.removeprefix("encoder."): tensor
            for name, tensor in tensors.items()
            if name.startswith("encoder.")
        }
    return tensors, notes


def _each_once(tensors: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Keeps a tensor that the official model shares under one name, even if the file has more."""
    once = {}
    for name, tensor in tensors.items():
        main = main_name(name)
        if main not in once:
            once[main] = tensors.get(main, tensor)
        if name == main:
            continue
        other = once[main]
        if tensor.shape != other.shape or not np.array_equal(
            tensor.read(), other.read(), equal_nan=True
        ):
            raise ValueError(
                f"{path}: {name} and {main} are the same tensor in the official model, but differ "
                "here. The file is damaged or was edited."
            )
    return once
