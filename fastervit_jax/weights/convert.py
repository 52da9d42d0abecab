"""Conversion between official PyTorch checkpoints and converted directories, in both directions.

`convert_torch_weights.py` calls these functions. They read the written weights back before they
move them to the output path. If the official network is installed, they also compare its logits.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from fastervit_jax.models import FasterViTConfig, family_of, network_config
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
"""A function that shows one line of text to the user."""


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
    """Converts an official checkpoint to a directory that `create_model(name, weights=…)` loads.

    Args:
        name: an official model name.
        checkpoint: a torch or safetensors file (see `read_torch_checkpoint`).
        output: the directory to write.
        ema: convert the EMA of the weights in the checkpoint.
        overwrite: replace an existing converted directory.
        compare: compare the logits of the converted weights with the official network.
        say: function that shows one line of text to the user.
        progress: show a progress bar if the output is a terminal.
        **options: options of `FasterViTConfig` that differ from the named model.

    Raises:
        ValueError: the checkpoint is invalid, or the logits differ from the official network.
        ImportError: a required package is not installed.
        OSError: a file cannot be read or written.

    Nothing is written if an error is raised.
    """
    check_writable(output, overwrite=overwrite)
    say(f"Reading {checkpoint}")
    weights = open_weights(checkpoint, ema=ema)
    if weights.kind != "official":
        raise ValueError(
            f"{checkpoint} is not an official checkpoint. It does not need conversion."
        )
    with (
        staged_directory(output, overwrite=overwrite) as beside,
        _on_the_host(),
    ):
        matched = _convert_into(beside, name, weights, options, say=say, progress=progress)
        if compare:
            say("Reading the written weights back")
            _compare_converted(beside, weights, matched, say)
    say(f"Wrote {output}")


def _on_the_host() -> contextlib.AbstractContextManager:
    """Selects the CPU: an accelerator may have too little memory and is less precise."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
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
    """Compares the logits of the converted weights with the official network on the checkpoint."""
    loaded = load_model(None, open_weights(directory), {})
    if _has_no_reference(loaded.model, say):
        return
    name, config, ours = loaded.info.model, loaded.model.config, our_logits(loaded.model)
    new = {
        torch_name(key): to_torch_layout(np.array(array))
        for part in arrays_of(loaded.model)
        for key, array in part.items()
        if torch_name(key) in matched.new
    }
    del loaded  # free the memory before the official network is built
    theirs = {key: weights.tensors[key].read() for key in weights.tensors}
    _compare(name, config, {**theirs, **new}, ours, say, strict=False)


def _has_no_reference(model: Any, say: Say) -> bool:
    """Whether the official package cannot build such a network; says so."""
    if model.backbone is model:
        return False
    say("NOT compared with the official network: the official package only has classifiers.")
    return True


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
    """Writes weights to a file that the official package loads with `strict=True`.

    The file contains a dictionary with `arch` and `state_dict`. For a work directory of train.py,
    `state_dict` contains the trained weights and `state_dict_ema` contains their EMA, as in files
    of the official training script. With `ema`, `state_dict` contains the EMA, for code that only
    reads this key.

    Args:
        name: the official model name. None uses the name stored with the weights.
        weights: a converted directory or a work directory of train.py.
        path: the file to write.
        ema: for a work directory, store the EMA as `state_dict`.
        overwrite: replace an existing file.
        say: function that shows one line of text to the user.
        progress: show a progress bar if the output is a terminal.

    Raises:
        ValueError: the weights are invalid, or the logits differ from the official network.
        ImportError: a required package is not installed.
        OSError: a file cannot be read or written.

    Nothing is written if an error is raised.
    """
    parts = _parts_to_export(weights, ema)
    saved = _info(parts["state_dict"])
    if name not in (None, saved.model):
        raise ValueError(f"{weights} contains weights of {saved.model}, not of {name}.")
    with (
        staged_file(path, overwrite=overwrite) as beside,
        _on_the_host(),
    ):
        _write_torch_file(beside, saved.model, parts, progress=progress)
        say("Reading the written weights back")
        for key, part in parts.items():
            _compare_exported(beside, key, part, say)
    say(f"Wrote {path}")


def _parts_to_export(path: str | Path, ema: bool) -> dict[str, Weights]:
    """Returns the weights to store, by key of the file."""
    weights = open_weights(path)
    if weights.kind == "official":
        raise ValueError(f"{path} is already an official checkpoint.")
    if weights.kind == "workdir" and not ema:
        return {"state_dict": open_weights(path, ema=False), "state_dict_ema": weights}
    if weights.kind == "converted" and ema:
        raise ValueError(
            f"{path} is a converted directory. It does not contain an EMA; omit --ema."
        )
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
        config = network_config(name, **_info(weights).overrides)
        content[key] = state_to_torch(arrays, config, family_of(name))
    torch.save(content, path)


def _compare_exported(path: Path, key: str, weights: Weights, say: Say) -> None:
    """Checks that a file contains exactly our weights and that the official network agrees."""
    import torch

    stored = read_torch_checkpoint(path, ema=key == "state_dict_ema")
    family = family_of(_info(weights).model)
    for name, tensor in weights.tensors.items():
        official = torch_name(name, family.torch_modules, family.torch_backbone)
        theirs = from_torch_layout(stored.tensors[official].read(), name)
        if not np.array_equal(tensor.read(), theirs):
            raise ValueError(
                f"{path}: {name} differs from the written values. The disk may be failing."
            )
    loaded = load_model(None, weights, {})
    if _has_no_reference(loaded.model, say):
        return
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
    """Compares logits with those of the official network with the weights `state`.

    Raises:
        ValueError: the logits differ by more than `TOLERANCE`.
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
            f"The logits differ from {result}. The limit is {TOLERANCE:.0e}. Nothing was written. "
            "Please report this, and say where the file comes from."
        )
    say(f"Compared with {result}.")


def _info(weights: Weights) -> WeightsInfo:
    if weights.info is None:
        raise ValueError(f"{weights.path} does not store the name of its model.")
    return weights.info
