"""Open weights of any kind (converted, official, trained) and load them into a model."""

import dataclasses
import functools
import hashlib
import itertools
import os
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
    Family,
    NetworkConfig,
    family_of,
    list_models,
    network_config,
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
from fastervit_jax.weights.matching import Match, match, role
from fastervit_jax.weights.names import from_torch_layout, in_backbone, torch_name
from fastervit_jax.weights.tensors import StoredTensor
from fastervit_jax.weights.torch_files import read_torch_checkpoint

_STEM = "stem.conv1.kernel"
"""The only array that depends on the channels of the images."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that are opened but not yet read.

    Attributes:
        path: path of the weights.
        kind: "converted" (a converted directory), "official" (a torch or safetensors file) or
            "workdir" (a work directory of train.py).
        tensors: tensors by name. The names are official names if `kind` is "official", otherwise
            ours.
        info: description of the weights; None for official files, which have none.
        part: name of the opened set if there are several, such as "state_dict_ema".
        notes: sentences to show to the user.
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    info: WeightsInfo | None
    part: str = ""
    notes: tuple[str, ...] = ()


def open_weights(path: str | Path, *, ema: bool | None = None) -> Weights:
    """Opens weights: a converted directory, an official file or a work directory.

    Args:
        path: path of the weights.
        ema: whether to use the EMA of the weights. The default is True for a work directory,
            because training evaluates the EMA. It is False for an official file, as in the official
            loader.

    Raises:
        ValueError: the path does not contain valid weights.
        ImportError: a required package is not installed.
        OSError: a file cannot be read.
    """
    path = os.path.expanduser(path)
    local = Path(path)
    if is_converted(local) or (local / METADATA).is_file():
        if ema:
            raise ValueError(f"{path} contains only one set of weights and no EMA. Omit --ema.")
        tensors, info = open_arrays(local)
        return Weights(local, "converted", tensors, info)
    if not local.is_file():
        from fastervit_jax.runs.workdir import is_workdir

        if is_workdir(path):
            return _open_workdir(path, ema=ema is not False)
    if is_remote(path):
        raise ValueError(
            f"{path} is not a work directory of train.py. Other weights can only be read from a "
            "local disk. Copy them first."
        )
    if local.is_dir():
        raise ValueError(
            f"No weights in {path}: expected a converted directory ({METADATA}) or a work "
            "directory of train.py (config.json and checkpoints/)."
        )
    official = read_torch_checkpoint(local, ema=bool(ema))
    return Weights(local, "official", official.tensors, None, official.weights, official.notes)


def stored_model_name(path: str | Path) -> str | None:
    """Returns the name of the model that weights store; None where they store none.

    Only the description is read.
    """
    if is_converted(path):
        return open_arrays(path)[1].model
    from fastervit_jax.runs.workdir import is_workdir, load_config

    if not Path(path).is_file() and is_workdir(path):
        return load_config(path).model.name
    return None


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
    if preprocessing.short_side is not None:
        preprocessing = dataclasses.replace(
            preprocessing,
            short_side=trained.config.evaluation.short_side,
            long_side=(
                trained.config.segmentation
                if family_of(name).task == "segmentation"
                else trained.config.resize
            ).long_side,
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
    """A model with loaded weights.

    Attributes:
        model: the model, in inference mode.
        info: its name, preprocessing and class names.
        match: which arrays were loaded from the weights.
        lines: lines to show to the user; empty if every array was loaded as it is.
    """

    model: Any
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
    """Builds a model and loads weights into it.

    Args:
        name: an official model name; None uses the name stored with the weights.
        weights: result of `open_weights`.
        requested: options that the user passed. Other options are those stored with the weights.
            The requested options also determine which arrays may differ (see `matching.match`).
            Weights for three channels are adapted to `in_chans`.
        dtype: dtype of the computation.
        rngs: random keys for new arrays; default `nnx.Rngs(0)`.
        progress: show a progress bar if the output is a terminal.

    Raises:
        ValueError: the weights belong to another model, do not fit, or are damaged.
    """
    name, config, lines = _target(name, weights, requested)
    family = family_of(name)
    model = family.abstract(config, dtype=dtype)
    shapes = {key: array.shape for part in arrays_of(model) for key, array in part.items()}
    theirs = {key: key for key in shapes}
    if weights.kind == "official":
        theirs = {
            key: torch_name(key, family.torch_modules, family.torch_backbone) for key in shapes
        }
    wanted = {
        theirs[key]: _torch_shape(shape, key) if weights.kind == "official" else shape
        for key, shape in shapes.items()
    }
    offered = {key: tensor.shape for key, tensor in weights.tensors.items()}
    stem = next(key for key in shapes if in_backbone(key) == _STEM)
    channels = shapes[stem][2]
    of_rgb = (*shapes[stem][:2], 3, shapes[stem][3])
    if weights.kind == "official":
        of_rgb = _torch_shape(of_rgb, stem)
    adapts = "in_chans" in requested and channels != 3 and offered.get(theirs[stem]) == of_rgb
    if adapts:
        offered[theirs[stem]] = wanted[theirs[stem]]
        how = "summed" if channels == 1 else f"repeated, times 3/{channels},"
        lines.append(f"The stem's kernel for 3 channels is {how} for {channels}.")
    matched = match(wanted, offered, config, requested, checkpoint=_label(weights))

    filled = {}
    taken = set(matched.taken)
    names = [key for key in shapes if theirs[key] in taken]
    for key in tqdm(names, desc="reading", unit=" arrays", disable=None if progress else True):
        filled[key] = _read(weights, theirs[key], key)
        if adapts and key == stem:
            filled[key] = _for_channels(filled[key], channels)
    if matched.new:
        missing = [key for key in shapes if key not in filled]
        filled.update(_initial_weights(family, config, missing, rngs or nnx.Rngs(0)))
    nnx.update(model, unflatten(filled))
    model.eval()
    classes_are_new = any(role(key, config) == "head" for key in matched.new)
    info = describe(model, name, weights.info, keep_class_names=not classes_are_new)
    lines += [*weights.notes, *matched.lines()]
    if weights.kind == "official":
        lines += _rounded(weights.tensors) + torch_buffers.stored_coordinates(weights.tensors)
    return Loaded(model, info, matched, lines)


def save_model(
    model: Any,
    directory: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model as a converted directory, which `create_model(name, weights=…)` loads.

    Args:
        model: a network of `create_model`, or any FasterViT.
        directory: the directory to write. It is written completely or not at all.
        class_names: names in the order of the logits. The default is the model's class names, if it
            has any.
        overwrite: replace an existing converted directory.
        source: origin of the weights, as JSON values.

    Raises:
        FileExistsError: the path exists and may not be replaced.
        ValueError: a weight is NaN or infinite, or the number of class names is wrong.
    """
    check_writable(directory, overwrite=overwrite)
    name = _name_of(model)
    if class_names is None:
        class_names = getattr(model, "class_names", None)
    if class_names is not None and len(class_names) != model.config.num_classes:
        raise ValueError(
            f"Invalid class_names: expected {model.config.num_classes} names, one per class of the "
            f"model, got {len(class_names)}."
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


def config_overrides(name: str, config: NetworkConfig) -> dict[str, Any]:
    """Returns the options that differ from the defaults of the named model."""
    own, given = network_config(name).options(), config.options()
    return {option: value for option, value in given.items() if value != own[option]}


def _target(
    name: str | None, weights: Weights, requested: Mapping[str, Any]
) -> tuple[str, Any, list[str]]:
    """Returns name and configuration of the model to build, and lines for the user."""
    info = weights.info
    if info is None:
        if name is None:
            raise ValueError(f"{weights.path} does not store the name of its model. Pass the name.")
        return name, network_config(name, **requested), []
    name = name or info.model
    saved, lines = dict(info.overrides), []
    if name != info.model:
        if square_sibling(name) != square_sibling(info.model):
            raise ValueError(f"{weights.path} contains weights of {info.model}, not of {name}.")
        saved.pop("resolution", None)
        lines = [f"Weights of {info.model} for its sibling {name}."]
    return name, network_config(name, **{**saved, **requested}), lines


def _label(weights: Weights) -> str:
    """Returns the name of the weights for messages."""
    if weights.info is None:
        return str(weights.path)
    options = "".join(f", {key}={value}" for key, value in weights.info.overrides.items())
    return f"{weights.path} ({weights.info.model}{options})"


def square_sibling(name: str) -> str:
    """Returns the model of fixed resolution that has the same published weights.

    A model of fixed resolution is its own sibling, and so is a network of another family.

    Raises:
        ValueError: the name is unknown.
    """
    if not network_config(name).backbone.any_res or name not in VARIANTS:
        return name
    squares = (key for key in VARIANTS if not VARIANTS[key].get("any_res", False))
    return next(square for square in squares if any_res_sibling(square) == name)


def file_sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as a hexadecimal string."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torch_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Returns the shape of an array after `to_torch_layout`."""
    if name.endswith("embedding"):
        return shape
    return tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else shape[::-1]


def _read(weights: Weights, name: str, ours: str) -> jax.Array:
    tensor = weights.tensors[name]
    if "float" not in tensor.dtype:
        raise ValueError(
            f"{weights.path}: invalid dtype of {name}: expected floating point, got {tensor.dtype}."
        )
    array = tensor.read()
    check_finite(f"{weights.path}: {name}", array)
    if weights.kind == "official":
        array = from_torch_layout(array, ours)
    # Copy, because the file may be memory-mapped and JAX would keep a reference to it.
    return jnp.array(array, jnp.float32, copy=True)


def _for_channels(kernel: jax.Array, channels: int) -> jax.Array:
    """A kernel [h, w, 3, out] for images of other channels, as in timm's `adapt_input_conv`.

    One channel gets the sum of the three. Several get them in turn, times 3 / channels, so that the
    outputs are about as large as before.
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, jnp.arange(channels) % 3] * (3 / channels)


class _Keys:
    """A sequence of random keys. It replaces `nnx.Rngs`, which is slow to trace."""

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = itertools.count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self._key, next(self._count))


def _initial_weights(
    family: Family, config: NetworkConfig, names: Sequence[str], rngs: nnx.Rngs
) -> Arrays:
    """Draws initial values for the named arrays only."""

    def draw(key: jax.Array) -> Arrays:
        keys: Any = _Keys(key)
        params, statistics = arrays_of(family.module(config, dtype=jnp.float32, rngs=keys))
        return {name: {**params, **statistics}[name] for name in names}

    return jax.jit(draw)(rngs.params())


def _rounded(tensors: Mapping[str, StoredTensor]) -> list[str]:
    double = [name for name, tensor in tensors.items() if tensor.dtype == "float64"]
    return [f"Rounded from float64 to float32: {len(double)} tensors."] if double else []


def describe(
    model: Any,
    name: str,
    saved: WeightsInfo | None = None,
    *,
    keep_class_names: bool = True,
) -> WeightsInfo:
    """Sets the attributes `name`, `class_names` and `preprocessing` of a model.

    Args:
        model: any network.
        name: its name.
        saved: description stored with the weights.
        keep_class_names: whether the logits still belong to the saved classes.

    Returns:
        The description of the model.
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
    # Plain values are part of the module's structure and survive nnx.split.
    for attribute, value in (
        ("name", name),
        ("class_names", info.class_names),
        ("preprocessing", info.preprocessing),
    ):
        setattr(model, attribute, value)
    return info


def _name_of(model: Any) -> str:
    """Returns the model's own name, or that of the published FasterViT nearest to it."""
    if model.backbone is not model:
        if getattr(model, "name", None) not in list_models():
            raise ValueError("Invalid model: it has no name. Set model.name to one of list_models.")
        return model.name
    any_res = model.config.any_res
    name = getattr(model, "name", None)
    if name in VARIANTS and VARIANTS[name].get("any_res", False) == any_res:
        return name
    names = [key for key in VARIANTS if VARIANTS[key].get("any_res", False) == any_res]
    return min(names, key=lambda key: len(config_overrides(key, model.config)))
