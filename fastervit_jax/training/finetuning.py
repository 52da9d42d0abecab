"""Fine-tuning: loading weights, freezing modules, layer-wise learning-rate decay."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
from flax import nnx

from fastervit_jax.models import FasterViTConfig, NetworkConfig, family_of
from fastervit_jax.models.pure_model import arrays_of, unflatten
from fastervit_jax.runs.config import model_config, model_options
from fastervit_jax.weights.loading import load_model, open_weights
from fastervit_jax.weights.names import BACKBONE, from_torch_layout, torch_name


def load_initial_model(config: ml_collections.ConfigDict, dtype) -> Any:
    """The network of a run with `config.finetune.weights`; prints which parts are new.

    Raises:
        ValueError: the weights cannot be read, or do not fit.
    """
    path, wanted = config.finetune.weights, model_config(config)
    loaded = load_model(config.model.name, open_weights(path), model_options(config), dtype=dtype)
    _check_same_sizes(path, loaded.model, wanted)
    for line in [f"Starting from {path}.", *loaded.lines]:
        print(line, flush=True)
    return loaded.model


def _check_same_sizes(path: str, model: Any, wanted: NetworkConfig) -> None:
    """Raises ValueError where the weights store options that give arrays of other sizes."""
    expected = arrays_of(family_of(model.name).abstract(wanted))
    shapes = [{name: array.shape for name, array in part.items()} for part in expected]
    if shapes == [{name: array.shape for name, array in part.items()} for part in arrays_of(model)]:
        return
    theirs, ours = model.config.options(), wanted.options()
    differing = [
        f"{name}={theirs[name]!r} (config.model: {ours[name]!r})"
        for name in theirs
        if theirs[name] != ours[name]
    ]
    raise ValueError(
        f"Invalid config.finetune.weights={path}: they are of a network with "
        f"{', '.join(differing)}. Set these keys of config.model to the values of the weights, or "
        "use other weights."
    )


def load_backbone(model: Any, path: str) -> None:
    """Fills the FasterViT in a network with the weights of a classifier; prints what is left out.

    Args:
        model: a network with a `backbone`.
        path: an official file, a converted directory or a work directory of a classifier.

    Raises:
        ValueError: the weights cannot be read, belong to another kind of network, or do not fit.
    """
    weights = open_weights(path)
    if weights.info is not None and family_of(weights.info.model).task != "classification":
        raise ValueError(
            f"Invalid config.finetune.backbone={path}: expected a classifier, got "
            f"{weights.info.model}. To start from all of its weights, use config.finetune.weights."
        )
    filled, problems = {}, []
    for part in arrays_of(model.backbone):
        for name, array in part.items():
            theirs = torch_name(name) if weights.kind == "official" else name
            tensor = weights.tensors.get(theirs)
            value = None if tensor is None else tensor.read()
            if value is not None and weights.kind == "official":
                value = from_torch_layout(value)
            if value is None or value.shape != array.shape:
                problems.append(theirs)
            else:
                filled[name] = jnp.asarray(value, jnp.float32)
    if problems:
        raise ValueError(
            f"Invalid config.finetune.backbone={path}: {len(problems)} arrays of the backbone are "
            f"missing there or have another shape, beginning with {problems[0]}. Expected weights "
            "of the classifier that the network is named after."
        )
    nnx.update(model.backbone, unflatten(filled))
    print(f"The backbone starts from {path}.", flush=True)


def is_frozen(name: str, frozen: Iterable[str]) -> bool:
    """Whether an array belongs to one of the frozen modules, by its dotted name.

    Args:
        name: such as `stages.0.blocks.1.conv1.kernel`.
        frozen: modules, such as `stem`, `stages` or `stages.0`.
    """
    return any(name.startswith(f"{module}.") for module in frozen)


def check_frozen(names: Sequence[str], frozen: Iterable[str]) -> None:
    """Raises ValueError where a frozen module is none of the network's, or nothing is left."""
    for module in frozen:
        if not any(name.startswith(f"{module}.") for name in names):
            raise ValueError(
                f"Invalid config.finetune.frozen: the network has no module {module!r}. Use names "
                f"such as stem, stages.0, downsamples.0, norm, head."
            )
    if all(is_frozen(name, frozen) for name in names):
        raise ValueError(
            f"Invalid config.finetune.frozen={tuple(frozen)}: it leaves nothing to train."
        )


def learning_rate_multiplier(
    name: str, network: FasterViTConfig, decay: float, backbone_factor: float = 1.0
) -> float:
    """Layer-wise learning-rate decay: `decay` to the number of layers behind an array's.

    Layers are the stem, then every block. A downsampling belongs to the block before it, and a
    carrier tokenizer to the first block of its stage. The last norm and the head learn at the full
    rate, and so do other modules around a backbone.

    Args:
        name: dotted name of the array.
        network: the FasterViT.
        decay: factor from one layer to the one before, at most 1.
        backbone_factor: further factor on arrays below `backbone.`.
    """
    layers = sum(network.depths) + 1
    own = name.removeprefix(BACKBONE)
    factor = backbone_factor if own != name else 1.0
    return factor * decay ** (layers - _layer(own, network))


def _layer(name: str, network: FasterViTConfig) -> int:
    if name.startswith("stem."):
        return 0
    if match := re.match(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?", name):
        return sum(network.depths[: int(match[1])]) + int(match[2] or 0) + 1
    if match := re.match(r"downsamples\.(\d+)\.", name):
        return sum(network.depths[: int(match[1]) + 1])
    return sum(network.depths) + 1
