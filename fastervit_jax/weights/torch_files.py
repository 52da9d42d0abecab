"""Read official checkpoints without running code from them.

Torch files are only opened with torch's safe loader. It builds tensors and plain containers. What
else a file names (classes of other libraries beside the weights) becomes an inert placeholder:
nothing of it is imported or called.
"""

import collections
import dataclasses
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastervit_jax.weights.names import main_name
from fastervit_jax.weights.tensors import StoredTensor, joined

_FORMS = ("state_dict", "model")
"""Keys of the weights in a checkpoint, in the order of the official loader."""

_EMAS = ("state_dict_ema", "model_ema")
"""Keys of the EMA of the weights: the official training script's, and that of others."""

_COUNTERS = ("total_ops", "total_params")
"""Names that a profiler (thop) leaves beside the weights."""

_MOST_PLACEHOLDERS = 200

_OF_TENSORS = ("torch.storage.", "torch._utils.")
"""Modules whose functions make tensors. A placeholder would stand for a weight."""

_FIRST = "patch_embed.conv_down.0.weight"
"""The first tensor of every FasterViT."""

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
        ema: use the EMA of the weights, `state_dict_ema` or `model_ema`.

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
    tensors, more_notes = _without_counters(tensors)
    notes += more_notes
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


class Placeholder:
    """Takes the place of an object that a file names and that is not needed. It does nothing."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass


_UNKNOWN = re.compile(r"GLOBAL (\S+)")
_FILLED = re.compile(r"Can only (SETITEM|append|extend).* but got <class 'placeholder\.(.+)'>")


def _add_placeholder(placeholders: dict[str, type[Placeholder]], message: str) -> bool:
    """Adds what torch's loader lacks, according to its message. Returns whether it could.

    torch fills plain dictionaries and lists only, so those take the place of their subclasses.
    """
    unknown, filled = _UNKNOWN.search(message), _FILLED.search(message)
    if filled:
        name = filled[2]
        container = collections.OrderedDict if filled[1] == "SETITEM" else list
        members: dict[str, Any] = {"__new__": lambda *_, **__: container()}
    elif unknown and unknown[1] not in placeholders and not unknown[1].startswith(_OF_TENSORS):
        name, members = unknown[1], {}
    else:
        return False
    placeholders[name] = type(name, (Placeholder,), {"__module__": "placeholder", **members})
    return True


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

    placeholders: dict[str, type[Placeholder]] = {}
    try:
        while True:
            allowed: list = [(kind, name) for name, kind in placeholders.items()]
            try:
                with torch.serialization.safe_globals(allowed):
                    return torch.load(path, map_location="cpu", weights_only=True, mmap=memory_map)
            except pickle.UnpicklingError as error:
                if len(placeholders) == _MOST_PLACEHOLDERS:
                    raise
                if not _add_placeholder(placeholders, str(error)):
                    raise
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
    except MemoryError:
        raise  # no damage of the file
    # Damaged bytes lead torch to many errors: struct.error, RuntimeError, EOFError, …
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a torch checkpoint, or is damaged ({reason}). Download or copy it "
            "again."
        ) from None


def _weights_of(content, path: Path, ema: bool) -> tuple[Mapping, str, list[str]]:
    """Returns the dictionary of tensors, its key in the file, and notes for the user."""
    _check_not_a_module(content, path)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"Invalid checkpoint {path}: expected a dictionary of tensors, got "
            f"{type(content).__name__}."
        )
    notes: list[str] = []
    if ema:
        key = next((key for key in _EMAS if key in content), "")
        if not key:
            raise ValueError(
                f"{path} has no EMA. Its keys are {joined(map(str, content))}. Omit --ema."
            )
    else:
        key, notes = _key_of_weights(content, path)
    state = content[key] if key else content
    _check_not_a_module(state, path)
    if not isinstance(state, Mapping):
        raise ValueError(
            f"{path}: invalid {key!r}: expected a dictionary of tensors, got "
            f"{type(state).__name__}."
        )
    return state, key, notes


def _key_of_weights(content: Mapping, path: Path) -> tuple[str, list[str]]:
    """Returns the key of the plain weights, "" for the whole file, and notes for the user."""
    has_ema = [key for key in _EMAS if key in content]
    note = f"The file also contains an EMA ({joined(has_ema)}). Use --ema to convert it."
    for key in _FORMS:
        if key in content:
            return key, [note] if has_ema else []
    holders = [str(key) for key, value in content.items() if _holds_tensors(value)]
    plain = [key for key in holders if key not in _EMAS]
    if len(plain) == 1:
        notes = [f"The weights are the entry {plain[0]!r} of the file."]
        return plain[0], notes + ([note] if has_ema else [])
    if not plain and len(holders) == 1:
        return holders[0], [f"The file contains only an EMA ({holders[0]}). It is used."]
    if holders:
        raise ValueError(
            f"{path} has several entries with tensors: {joined(holders)}. Save the one that you "
            "want as state_dict with torch.save"
            + (f", or use --ema for {has_ema[0]}." if has_ema else ".")
        )
    return "", []


def _holds_tensors(value) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and any(isinstance(each, torch.Tensor) for each in value.values())
        and all(isinstance(name, str) for name in value)
    )


def _check_not_a_module(content, path: Path) -> None:
    if isinstance(content, Placeholder):
        raise ValueError(
            f"{path} contains a pickled object ({type(content).__name__}) instead of weights. "
            "Reading it would run code. Where its code is installed, and if you trust the file, "
            "save its weights:\n"
            f"  model = torch.load({str(path.name)!r}, weights_only=False)\n"
            '  torch.save(model.state_dict(), "weights.pth")'
        )


def _from_torch(name, tensor, path: Path) -> StoredTensor:
    import torch

    if isinstance(tensor, Placeholder):
        raise ValueError(
            f"{path} was rejected because its entry {str(name)!r}, among the weights, would run "
            f"{type(tensor).__name__}. A checkpoint only needs tensors and plain values. No code "
            "was run."
        )
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


def _without_counters(
    tensors: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drops the counters that a profiler leaves beside the weights."""
    counters = [name for name in tensors if name.split(".")[-1] in _COUNTERS]
    if not counters:
        return tensors, []
    kept = {name: tensor for name, tensor in tensors.items() if name not in set(counters)}
    return kept, [f"Skipped {len(counters)} counters of a profiler ({joined(counters, 2)})."]


def _without_prefixes(
    tensors: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Removes the prefixes that wrappers add to all names, and says which.

    Those of `DataParallel` and `torch.compile` are always removed. Another one, such as `model.` of
    Lightning, is removed where a FasterViT remains. Of a file with `encoder.*`, nothing else is
    kept, as in the official loader.
    """
    notes = []
    prefix = ""
    wrapped = True
    while wrapped:
        wrapped = False
        for each in ("module.", "_orig_mod."):
            if all(name.startswith(prefix + each) for name in tensors):
                prefix += each
                wrapped = True
    first = [name for name in tensors if name.endswith("." + _FIRST)]
    if _FIRST not in tensors and len(first) == 1:
        longest = first[0].removesuffix(_FIRST)
        if longest != "encoder." and all(name.startswith(longest) for name in tensors):
            prefix = longest
    if prefix:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if prefix != "module.":
            notes.append(f"Removed the prefix `{prefix}` of all names.")
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
