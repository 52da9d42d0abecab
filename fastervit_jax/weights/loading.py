"""Weights from anywhere into a network: what a path holds, and filling a model from it."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from fastervit_jax.data.paths import is_remote
from fastervit_jax.data.preprocessing import default_preprocessing
from fastervit_jax.models import (
    VARIANTS,
    FasterViT,
    FasterViTConfig,
    abstract_model,
    variant_config,
)
from fastervit_jax.models.pure_model import Arrays, arrays_of, unflatten
from fastervit_jax.models.variants import any_res_sibling
from fastervit_jax.weights import torch_buffers
from fastervit_jax.weights.directory import (
    METADATA,
    WeightsInfo,
    check_finite,
    check_writable,
    is_converted,
    open_arrays,
    save_arrays,
)
from fastervit_jax.weights.matching import Match, match
from fastervit_jax.weights.names import from_torch_layout, torch_name
from fastervit_jax.weights.tensors import StoredTensor
from fastervit_jax.weights.torch_files import read_torch_checkpoint


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that a path holds, opened but not read.

    Attributes:
        path: where they are.
        kind: "converted" (our directory), "official" (a torch or safetensors file) or "workdir"
            (of train.py).
        tensors: by our names, or for "official" by the official ones.
        info: what the weights say they belong to; None for official files, which do not.
        part: which of several sets of weights was opened, such as "state_dict_ema".
        notes: what a person should know, a sentence each.
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    info: WeightsInfo | None
    part: str = ""
    notes: tuple[str, ...] = ()


def open_weights(path: str | Path, *, ema: bool | None = None) -> Weights:
    """Opens whatever holds weights: a converted directory, an official file or a work directory.

    Args:
        path: where.
        ema: take the EMA. By default a work directory's EMA, which is what
            training evaluates, and an official file's plain weights, as the official loader does.

    Raises:
        ValueError, ImportError, OSError: it cannot be read; the message says why.
    """
    local = Path(path)
    if is_converted(local) or (local / METADATA).is_file():
        if ema:
            raise ValueError(f"{path} holds one set of weights, and no EMA beside it.")
        tensors, info = open_arrays(local)
        return Weights(local, "converted", tensors, info)
    if not local.is_file():
        from fastervit_jax.runs.workdir import is_workdir

        if is_workdir(path):
            return _open_workdir(path, ema=ema is not False)
    if is_remote(path):
        raise ValueError(
            f"{path} is no work directory of train.py, and other weights are read from local disks "
            f"alone: copy it first."
        )
    if local.is_dir():
        raise ValueError(
            f"{path} holds no weights: it is neither a converted directory ({METADATA}) nor a work "
            f"directory of train.py (config.json and checkpoints/)."
        )
    official = read_torch_checkpoint(local, ema=bool(ema))
    return Weights(local, "official", official.tensors, None, official.weights, official.notes)


def _open_workdir(path: str | Path, *, ema: bool) -> Weights:
    from fastervit_jax.runs.workdir import load_trained

    trained = load_trained(path, ema=ema)
    params, statistics = arrays_of(trained.model)
    name, config = trained.config.model.name, trained.model.config
    preprocessing = dataclasses.replace(
        default_preprocessing(name, config.resolution),
        crop_mode=trained.config.evaluation.crop_mode,
        crop_fraction=trained.config.evaluation.crop_fraction,
    )
    part = "average" if ema else "plain"
    info = WeightsInfo(
        model=name,
        overrides=config_overrides(name, config),
        preprocessing=preprocessing,
        class_names=trained.class_names,
        source={"workdir": Path(path).name, "weights": part, "step": trained.step},
    )
    tensors = {
        key: StoredTensor(array.shape, str(array.dtype), functools.partial(np.asarray, array))
        for key, array in {**params, **statistics}.items()
    }
    return Weights(Path(path), "workdir", tensors, info, part)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model filled with weights.

    Attributes:
        model: in inference mode.
        info: what it is: name, preprocessing at its resolution, class names.
        match: which arrays the weights filled.
        lines: what a person should know, a line each; empty where nothing is remarkable.
    """

    model: FasterViT
    info: WeightsInfo
    match: Match
    lines: list[str]


def load_model(
    name: str | None,
    weights: Weights,
    requested: Mapping[str, Any],
    *,
    dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
    progress: bool = False,
) -> Loaded:
    """Builds a network and fills it.

    Args:
        name: an official model name; None takes what the weights say.
        weights: of `open_weights`.
        requested: options that the user gave; others are those the weights were saved with. They
            also say what may differ from the weights (`matching.match`).
        dtype: type of the computation.
        rngs: where new weights come from, if there are any; default `nnx.Rngs(0)`.
        progress: show a progress bar, on a terminal.

    Raises:
        ValueError: the weights are another model's, do not fit, or are damaged.
    """
    name, config, lines = _target(name, weights, requested)
    model = abstract_model(config, dtype=dtype)
    shapes = {key: array.shape for part in arrays_of(model) for key, array in part.items()}
    theirs = {key: key for key in shapes}
    if weights.kind == "official":
        theirs = {key: torch_name(key) for key in shapes}
    wanted = {
        theirs[key]: _torch_shape(shape) if weights.kind == "official" else shape
        for key, shape in shapes.items()
    }
    offered = {key: tensor.shape for key, tensor in weights.tensors.items()}
    matched = match(wanted, offered, config, requested, checkpoint=_label(weights))

    filled = {}
    taken = set(matched.taken)
    names = [key for key in shapes if theirs[key] in taken]
    for key in tqdm(names, desc="reading", unit=" arrays", disable=None if progress else True):
        filled[key] = _read(weights, theirs[key])
    if matched.new:
        missing = [key for key in shapes if key not in filled]
        filled.update(_initial_weights(config, missing, rngs or nnx.Rngs(0)))
    nnx.update(model, unflatten(filled))
    model.eval()
    head_is_new = any(key.startswith("head.") for key in matched.new)
    info = describe(model, name, weights.info, keep_class_names=not head_is_new)
    lines += [*weights.notes, *matched.lines()]
    if weights.kind == "official":
        lines += _rounded(weights.tensors) + torch_buffers.stored_coordinates(weights.tensors)
    return Loaded(model, info, matched, lines)


def save_model(
    model: FasterViT,
    directory: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model as a converted directory, which `create_model(name, weights=…)` loads.

    Args:
        model: any FasterViT.
        directory: where to; written whole or not at all.
        class_names: in the order of the logits; by default those of the model, if it has any.
        overwrite: replace a converted directory that stands there.
        source: what the weights come from, as JSON values.

    Raises:
        FileExistsError: something stands there.
        ValueError: a weight is NaN or infinite, or there are too few or many class names.
    """
    check_writable(directory, overwrite=overwrite)
    name = _name_of(model)
    if class_names is None:
        class_names = getattr(model, "class_names", None)
    if class_names is not None and len(class_names) != model.config.num_classes:
        raise ValueError(
            f"There are {len(class_names)} class names, but the model has "
            f"{model.config.num_classes} classes."
        )
    preprocessing = getattr(model, "preprocessing", None) or default_preprocessing(name)
    info = WeightsInfo(
        model=name,
        overrides=config_overrides(name, model.config),
        preprocessing=dataclasses.replace(preprocessing, resolution=model.config.resolution),
        class_names=None if class_names is None else tuple(class_names),
        source=dict(source or {}),
    )
    arrays = {key: array for part in arrays_of(model) for key, array in part.items()}
    save_arrays(directory, jax.device_get(arrays), info, overwrite=overwrite)


def config_overrides(name: str, config: FasterViTConfig) -> dict[str, Any]:
    """Options of a configuration that differ from the named network's own."""
    own = dataclasses.asdict(variant_config(name))
    given = dataclasses.asdict(config)
    return {option: value for option, value in given.items() if value != own[option]}


def _target(
    name: str | None, weights: Weights, requested: Mapping[str, Any]
) -> tuple[str, FasterViTConfig, list[str]]:
    """Name and configuration of the network to fill, and what to say about them."""
    info = weights.info
    if info is None:
        if name is None:
            raise ValueError(f"{weights.path} does not say which model it is: give the name.")
        return name, variant_config(name, **requested), []
    name = name or info.model
    saved, lines = dict(info.overrides), []
    if name != info.model:
        if square_sibling(name) != square_sibling(info.model):
            raise ValueError(f"{weights.path} holds weights of {info.model}, not of {name}.")
        saved.pop("resolution", None)
        lines = [f"Weights of {info.model} for its sibling {name}."]
    return name, variant_config(name, **{**saved, **requested}), lines


def _label(weights: Weights) -> str:
    """What a message calls weights."""
    if weights.info is None:
        return str(weights.path)
    options = "".join(f", {key}={value}" for key, value in weights.info.overrides.items())
    return f"{weights.path} ({weights.info.model}{options})"


def square_sibling(name: str) -> str:
    """The square model whose published weights a model shares; itself if it is square.

    Raises:
        ValueError: the name is unknown.
    """
    if not variant_config(name).any_res:
        return name
    squares = (key for key in VARIANTS if not VARIANTS[key].get("any_res", False))
    return next(square for square in squares if any_res_sibling(square) == name)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `to_torch_layout` gives."""
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]


def _read(weights: Weights, name: str) -> jax.Array:
    tensor = weights.tensors[name]
    if "float" not in tensor.dtype:
        raise ValueError(
            f"{weights.path}: {name} is {tensor.dtype}, but weights are floating point."
        )
    array = tensor.read()
    check_finite(f"{weights.path}: {name}", array)
    if weights.kind == "official":
        array = from_torch_layout(array)
    # A copy: the file may be mapped into memory, and jax would keep pointing into it.
    return jnp.array(array, jnp.float32, copy=True)


class _Keys:
    """Random keys one after another, like `nnx.Rngs`, which traces slowly."""

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = itertools.count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self._key, next(self._count))


def _initial_weights(config: FasterViTConfig, names: Sequence[str], rngs: nnx.Rngs) -> Arrays:
    """New weights for some of a network's arrays, without drawing the others."""

    def draw(key: jax.Array) -> Arrays:
        keys: Any = _Keys(key)
        params, statistics = arrays_of(FasterViT(config, rngs=keys))
        return {name: {**params, **statistics}[name] for name in names}

    return jax.jit(draw)(rngs.params())


def _rounded(tensors: Mapping[str, StoredTensor]) -> list[str]:
    double = [name for name, tensor in tensors.items() if tensor.dtype == "float64"]
    return [f"Rounded from float64 to float32: {len(double)} tensors."] if double else []


def describe(
    model: FasterViT,
    name: str,
    saved: WeightsInfo | None = None,
    *,
    keep_class_names: bool = True,
) -> WeightsInfo:
    """Gives a model the attributes `name`, `class_names` and `preprocessing`.

    Args:
        model: any.
        name: its official name.
        saved: what its weights say of themselves.
        keep_class_names: whether the logits still mean the saved classes.

    Returns:
        What it is.
    """
    config = model.config
    info = WeightsInfo(
        model=name,
        overrides=config_overrides(name, config),
        preprocessing=dataclasses.replace(
            saved.preprocessing if saved else default_preprocessing(name),
            resolution=config.resolution,
        ),
        class_names=saved.class_names if saved and keep_class_names else None,
        source=saved.source if saved else {},
    )
    # Plain values, so that they are part of the module's structure: they survive nnx.split.
    for attribute, value in (
        ("name", name),
        ("class_names", info.class_names),
        ("preprocessing", info.preprocessing),
    ):
        setattr(model, attribute, value)
    return info


def _name_of(model: FasterViT) -> str:
    """The published network that a model is, or is nearest to."""
    any_res = model.config.any_res
    name = getattr(model, "name", None)
    if name in VARIANTS and VARIANTS[name].get("any_res", False) == any_res:
        return name
    names = [key for key in VARIANTS if VARIANTS[key].get("any_res", False) == any_res]
    return min(names, key=lambda key: len(config_overrides(key, model.config)))
