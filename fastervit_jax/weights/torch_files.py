"""Reading official checkpoints, without running anything that is in them.

Torch files are opened by torch's safe loader alone, which builds tensors and plain containers and
refuses everything else. Of the classes a pickle may name, only `argparse.Namespace` is allowed
besides: the official training script stores its arguments in one.
"""

import argparse
import dataclasses
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastervit_jax.weights.names import TOKENIZER, TOKENIZER_COPY
from fastervit_jax.weights.tensors import StoredTensor, joined

_FORMS = ("state_dict", "model")
"""Keys under which checkpoints hold their weights, as the official loader looks for them."""

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True)
class OfficialCheckpoint:
    """Tensors of an official checkpoint, by their official names, without prefixes.

    Attributes:
        tensors: each tensor once: of the two names of the carrier-token convolution,
            `…to_global_feature.pos.*` alone.
        weights: the key that held them, or "" where the file is nothing but tensors.
        notes: what a person should know, a sentence each.
    """

    tensors: dict[str, StoredTensor]
    weights: str
    notes: tuple[str, ...]


def read_torch_checkpoint(path: str | Path, *, ema: bool = False) -> OfficialCheckpoint:
    """Opens a torch or safetensors file; tensors are mapped into memory, not read yet.

    Args:
        path: any checkpoint that the official code or its training script writes: a dictionary
            with `state_dict`, or `model`, or of nothing but tensors; or a safetensors file.
        ema: take the EMA, `state_dict_ema`.

    Raises:
        ValueError: the file is damaged, is something else, or would have to run code to be read.
        ImportError: torch is needed and missing.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    kind = _kind(path)
    notes: list[str] = []
    if kind == "safetensors":
        if ema:
            raise ValueError(f"{path} is a safetensors file, which has no state_dict_ema.")
        tensors, weights = _open_safetensors(path), ""
    else:
        if kind == "zip":
            _check_archive(path)
        content = _load_safely(path, memory_map=kind == "zip")
        state, weights, notes = _weights_of(content, path, ema)
        tensors = {name: _from_torch(name, tensor, path) for name, tensor in state.items()}
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
    tensors, more_notes = _without_prefixes(tensors)
    return OfficialCheckpoint(_tokenizer_once(tensors, path), weights, tuple(notes + more_notes))


def _kind(path: Path) -> str:
    """What a file's first bytes say it is: "zip", "pickle" or "safetensors"."""
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a checkpoint file.")
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty: its download or copy failed.")
    with path.open("rb") as file:
        start = file.read(64)
    # Safetensors begin with the length of their header, which is JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return "safetensors"
    if start.startswith(b"PK"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    hint = ""
    if start.startswith(b"version https://git-lfs"):
        hint = " It is a git-lfs pointer: fetch the file itself with `git lfs pull`."
    elif start.lstrip().startswith(b"<"):
        hint = " It looks like a web page: the download went wrong."
    raise ValueError(
        f"{path} is neither a torch nor a safetensors file: it begins with {start[:16]!r}.{hint}"
    )


def _check_archive(path: Path) -> None:
    """Makes sure that a zip file is a whole one, by torch, with every checksum right."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is cut off: the end of its archive is missing. Download or copy it again."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            parts = {name.split("/", 1)[1] for name in names if "/" in name}
            if "constants.pkl" in parts:
                raise ValueError(
                    f"{path} is a TorchScript program, not a checkpoint: save the model's "
                    f"state_dict() with torch.save."
                )
            if "data.pkl" not in parts:
                raise ValueError(
                    f"{path} is a zip archive, but not one that torch.save wrote: it holds "
                    f"{joined(names, 3) or 'nothing'}."
                )
            for name in names:
                with archive.open(name) as record:
                    while record.read(_CHUNK):
                        pass
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged ({error}): download or copy it again.") from None


def _load_safely(path: Path, *, memory_map: bool):
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"Reading {path} needs PyTorch, which is not installed: pip install torch (the CPU "
            f"build does). Converted directories need none."
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        # CVE-2025-32434: before 2.6 a file could run code in spite of `weights_only`.
        raise ImportError(
            f"torch {torch.__version__} cannot read files safely: install 2.6 or newer."
        )
    import pickle

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise ValueError(
                f"{path} is refused: reading it would run {wanted[1]}, and a checkpoint needs only "
                f"tensors and plain values. Nothing was run. If you trust where it comes from, "
                f"store its state_dict alone with torch.save."
            ) from None
        raise ValueError(
            f"{path} cannot be read safely: it holds more than tensors and plain values, or is "
            f"damaged. Nothing was run."
        ) from None
    except (EOFError, OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(
            f"{path} is no torch checkpoint, or a damaged one ({reason}): download or copy it "
            f"again."
        ) from None


def _weights_of(content, path: Path, ema: bool) -> tuple[Mapping, str, list[str]]:
    """The dictionary of tensors in what a file holds, its key, and notes."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; a checkpoint is a dictionary of tensors."
        )
    notes = []
    if ema:
        key = "state_dict_ema"
        if key not in content:
            raise ValueError(
                f"{path} has no EMA: its keys are {joined(map(str, content))}. Leave out --ema."
            )
    else:
        key = next((form for form in _FORMS if form in content), "")
        if "state_dict_ema" in content:
            notes.append("The file also holds an EMA (state_dict_ema): --ema takes it.")
    state = content[key] if key else content
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path}: {key!r} is a {type(state).__name__}, not a dictionary of tensors."
        )
    return state, key, notes


def _from_torch(name, tensor, path: Path) -> StoredTensor:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{path} is no checkpoint of weights: its entry {str(name)!r} is a "
            f"{type(tensor).__name__}, not a tensor, and it has no {' or '.join(_FORMS)}."
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ValueError(f"{path}: {name} is no weight: a {tensor.dtype} {tensor.layout} tensor.")

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
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16, which safetensors then finds)
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is a damaged safetensors file, or a cut off one ({error}): download or copy "
            f"it again."
        ) from None
    tensors = {}
    for name in file.keys():  # noqa: SIM118  (not a dictionary)
        piece = file.get_slice(name)
        dtype = _SAFETENSORS_TYPES.get(piece.get_dtype())
        if dtype is None:
            raise ValueError(
                f"{path}: {name} has type {piece.get_dtype()}; weights are "
                f"{', '.join(_SAFETENSORS_TYPES)}."
            )

        def read(name=name) -> np.ndarray:
            return file.get_tensor(name).astype(np.float32)

        tensors[name] = StoredTensor(tuple(piece.get_shape()), dtype, read)
    return tensors


def _without_prefixes(
    tensors: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drops `module.` where all names have it, and keeps `encoder.*` alone where there is any."""
    notes = []
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("encoder.") for name in tensors):
        others = [name for name in tensors if not name.startswith("encoder.")]
        if others:
            notes.append(f"Left out, because not below `encoder.`: {joined(others)}.")
        tensors = {
            name.removeprefix("encoder."): tensor
            for name, tensor in tensors.items()
            if name.startswith("encoder.")
        }
    return tensors, notes


def _tokenizer_once(tensors: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Leaves the carrier-token convolution under one name, whether a file has one or both."""
    once = {}
    for name, tensor in tensors.items():
        main = name.replace(TOKENIZER_COPY, TOKENIZER)
        if main == name or main not in tensors:
            once[main] = tensor
            continue
        other = tensors[main]
        if tensor.shape != other.shape or not np.array_equal(
            tensor.read(), other.read(), equal_nan=True
        ):
            raise ValueError(
                f"{path}: {name} and {main} are one tensor in the official model, but differ here: "
                f"the file is damaged or was edited."
            )
    return once
