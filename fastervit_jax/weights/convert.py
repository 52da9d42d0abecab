"""Converting: an official file to a converted directory, and weights of ours to an official file.

What `convert_torch_weights.py` does. In both directions what was written is read back, and compared
with the official network where that is installed, before it gets its place.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from fastervit_jax.models import FasterViTConfig, variant_config
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.weights.directory import WeightsInfo, check_writable, staged_directory
from fastervit_jax.weights.loading import (
    Weights,
    file_sha256,
    load_model,
    open_weights,
    save_model,
)
from fastervit_jax.weights.matching import Match
from fastervit_jax.weights.names import from_torch_layout, to_torch_layout, torch_name
from fastervit_jax.weights.to_torch import staged_file, state_to_torch
from fastervit_jax.weights.torch_files import read_torch_checkpoint
from fastervit_jax.weights.verification import (
    TOLERANCE,
    NotCompared,
    official_logits,
    our_logits,
    relative_difference,
)

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]
"""Tells a person one line."""


def convert_checkpoint(
    name: str,
    checkpoint: str | Path,
    output: str | Path,
    *,
    ema: bool = False,
    overwrite: bool = False,
    compare: bool = True,
    say: Say = print,
    progress: bool = False,
    **options: Any,
) -> None:
    """Turns an official checkpoint into a directory that `create_model(name, weights=…)` loads.

    Args:
        name: an official model name.
        checkpoint: a torch or safetensors file (`read_torch_checkpoint`).
        output: the directory to write.
        ema: take the checkpoint's EMA.
        overwrite: replace a converted directory that stands there.
        compare: run what was written, and the official network beside it.
        say: gets what a person should know, a line at a time.
        progress: show a progress bar, on a terminal.
        **options: of `FasterViTConfig`, where the network differs from the named one.

    Raises:
        ValueError, ImportError, OSError: nothing was written: the checkpoint is refused, or what
            came of it does not compute what the official network does. The message says why.
    """
    check_writable(output, overwrite=overwrite)
    say(f"Reading {checkpoint}")
    weights = open_weights(checkpoint, ema=ema)
    if weights.kind != "official":
        raise ValueError(f"{checkpoint} is no official file: it needs no conversion.")
    with (
        staged_directory(output, overwrite=overwrite) as beside,
        _on_the_host(),
    ):
        matched = _convert_into(beside, name, weights, options, say=say, progress=progress)
        if compare:
            say("Reading it back")
            _compare_converted(beside, weights, matched, say)
    say(f"Wrote {output}")


def _on_the_host() -> contextlib.AbstractContextManager:
    """Computes on the CPU: an accelerator may be too small for the model, and is less exact."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS allows no CPU
        return contextlib.nullcontext()


def _convert_into(
    directory: Path,
    name: str,
    weights: Weights,
    options: Mapping[str, Any],
    *,
    say: Say,
    progress: bool,
) -> Match:
    loaded = load_model(name, weights, options, progress=progress)
    for line in loaded.lines:
        say(line)
    source = {
        "file": weights.path.name,
        "sha256": file_sha256(weights.path),
        "weights": weights.part,
        "new": loaded.match.new,
        "unused": loaded.match.unused,
    }
    say("Writing")
    save_model(loaded.model, directory, source=source)
    return loaded.match


def _compare_converted(directory: Path, weights: Weights, matched: Match, say: Say) -> None:
    """Runs the network that was written, and the official one on the file it came from."""
    loaded = load_model(None, open_weights(directory), {})
    name, config, ours = loaded.info.model, loaded.model.config, our_logits(loaded.model)
    new = {
        torch_name(key): to_torch_layout(np.array(array))
        for part in arrays_of(loaded.model)
        for key, array in part.items()
        if torch_name(key) in matched.new
    }
    del loaded  # one network at a time: they may be large
    theirs = {key: weights.tensors[key].read() for key in weights.tensors}
    _compare(name, config, {**theirs, **new}, ours, say, strict=False)


def export_to_torch(
    name: str | None,
    weights: str | Path,
    path: str | Path,
    *,
    ema: bool = False,
    overwrite: bool = False,
    say: Say = print,
    progress: bool = False,
) -> None:
    """Writes weights of ours as a file that the official package loads with `strict=True`.

    A dictionary with `arch` and `state_dict`. Of a work directory of train.py `state_dict` holds
    the plain weights and `state_dict_ema` their EMA, as the official training script has
    it; with `ema`, `state_dict` holds the average, for code that reads nothing else.

    Args:
        name: the official model name, or None for what the weights say.
        weights: a converted directory, or a work directory of train.py.
        path: the file to write.
        ema: of a work directory, store the average as `state_dict`.
        overwrite: replace a file that stands there.
        say: gets what a person should know, a line at a time.
        progress: show a progress bar, on a terminal.

    Raises:
        ValueError, ImportError, OSError: nothing was written; the message says why.
    """
    parts = _parts_to_export(weights, ema)
    saved = _info(parts["state_dict"])
    if name not in (None, saved.model):
        raise ValueError(f"{weights} holds weights of {saved.model}, not of {name}.")
    with (
        staged_file(path, overwrite=overwrite) as beside,
        _on_the_host(),
    ):
        _write_torch_file(beside, saved.model, parts, progress=progress)
        say("Reading it back")
        for key, part in parts.items():
            _compare_exported(beside, key, part, say)
    say(f"Wrote {path}")


def _parts_to_export(path: str | Path, ema: bool) -> dict[str, Weights]:
    """What goes under which key of the file."""
    weights = open_weights(path)
    if weights.kind == "official":
        raise ValueError(f"{path} already is an official file.")
    if weights.kind == "workdir" and not ema:
        return {"state_dict": open_weights(path, ema=False), "state_dict_ema": weights}
    if weights.kind == "converted" and ema:
        raise ValueError(f"{path} is a converted directory, which has no EMA.")
    return {"state_dict": weights}


def _write_torch_file(
    path: Path, name: str, parts: Mapping[str, Weights], *, progress: bool
) -> None:
    import torch

    content: dict[str, Any] = {"arch": name}
    for key, weights in parts.items():
        hidden = None if progress else True
        names = tqdm(weights.tensors, desc=key, unit=" arrays", disable=hidden)
        arrays = {key: weights.tensors[key].read() for key in names}
        content[key] = state_to_torch(arrays, variant_config(name, **_info(weights).overrides))
    torch.save(content, path)


def _compare_exported(path: Path, key: str, weights: Weights, say: Say) -> None:
    """Makes sure that a file holds exactly our weights, and that the official network agrees."""
    import torch

    stored = read_torch_checkpoint(path, ema=key == "state_dict_ema")
    for name, tensor in weights.tensors.items():
        theirs = from_torch_layout(stored.tensors[torch_name(name)].read())
        if not np.array_equal(tensor.read(), theirs):
            raise ValueError(f"{path}: {name} is not what was written; the disk may be failing.")
    loaded = load_model(None, weights, {})
    name, config, ours = loaded.info.model, loaded.model.config, our_logits(loaded.model)
    del loaded
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[key]
    _compare(name, config, state, ours, say, strict=True)


def _compare(
    name: str,
    config: FasterViTConfig,
    state: Mapping[str, "torch.Tensor | np.ndarray"],
    ours: np.ndarray,
    say: Say,
    *,
    strict: bool,
) -> None:
    """Compares logits with the official network's, which gets `state`, and says how it went.

    Raises:
        ValueError: they differ by more than `TOLERANCE`.
    """
    try:
        theirs = official_logits(name, config, state, strict=strict)
    except NotCompared as error:
        say(f"NOT compared with the official network: {error}.")
        return
    difference = relative_difference(ours, theirs)
    result = (
        f"the official network: on {len(ours)} images of {config.resolution[0]}×"
        f"{config.resolution[1]} the largest difference is {difference:.1e} of the largest logit"
    )
    if not difference <= TOLERANCE:
        raise ValueError(
            f"Not the same as {result}; {TOLERANCE:.0e} is allowed. Nothing was written. Please "
            f"report this, with the file's origin."
        )
    say(f"Compared with {result}.")


def _info(weights: Weights) -> WeightsInfo:
    if weights.info is None:
        raise ValueError(f"{weights.path} does not say which model it is.")
    return weights.info
