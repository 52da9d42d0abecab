"""Run the official network and ours on the same images, and compare the logits."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models import FasterViT, FasterViTConfig
from fastervit_jax.weights.loading import config_overrides

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""Largest allowed difference, divided by the largest logit."""


class NotCompared(Exception):
    """The official network cannot be run. The message says why."""


def noise_images(config: FasterViTConfig) -> np.ndarray:
    """Returns two fixed images of normal noise, float32 `[2, H, W, channels]`."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((2, *config.resolution, config.in_chans), np.float32)


def our_logits(model: FasterViT) -> np.ndarray:
    """Returns our logits of the noise images, float32 `[2, num_classes]`."""
    graph, state = nnx.split(model)
    # The program runs only once, so a fast compilation saves more time than a fast program.
    run = jax.jit(
        lambda state, images: nnx.merge(graph, state)(images),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(state, jnp.asarray(noise_images(model.config))))


def official_network(name: str, config: FasterViTConfig) -> "torch.nn.Module":
    """Builds the official network of a configuration, in inference mode, with new weights.

    Raises:
        NotCompared: the official package is not installed, or cannot build the network.
    """
    module = _official_package(name)
    options: dict[str, Any] = config_overrides(name, config)
    if "resolution" in options and not config.any_res:
        options["resolution"] = config.resolution[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(module, name)(**options).eval()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise NotCompared(f"the official code cannot build this network ({error})") from None


def _official_package(name: str):
    """Imports the official module of a network."""
    try:
        import torch
    except ImportError:
        raise NotCompared("torch is not installed") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _import_official(name)
        except ImportError as error:
            raise NotCompared(f"the official package cannot be imported ({error})") from None
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise NotCompared(f"the official package cannot be imported ({error})") from None
        # A torchvision with CUDA cannot be imported with a torch without CUDA, because two
        # operators are missing. The network never calls them, so declarations are enough.
        declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            declared.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _declarations.append(declared)
        return _import_official(name)


_declarations: list = []
"""References that keep the declared operators alive."""


def _import_official(name: str):
    import importlib

    module = "faster_vit_any_res" if name.endswith("any_res") else "faster_vit"
    return importlib.import_module(f"fastervit.models.{module}")


def official_logits(
    name: str,
    config: FasterViTConfig,
    state: Mapping[str, "torch.Tensor | np.ndarray"],
    *,
    strict: bool,
) -> np.ndarray:
    """Returns the official network's logits of the noise images, float32 `[2, num_classes]`.

    Args:
        name: official model name.
        config: configuration of the network.
        state: official state dict.
        strict: whether the state dict must be complete. Otherwise the network keeps its own buffers
            if the state dict has none or has them in another size.

    Raises:
        NotCompared: the official package is not installed, or cannot run this network.
    """
    import torch

    network = official_network(name, config)
    state = {key: torch.as_tensor(tensor) for key, tensor in state.items()}
    if not strict:
        own = network.state_dict()
        state = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(state, strict=strict)
    images = torch.from_numpy(noise_images(config).transpose(0, 3, 1, 2).copy())
    try:
        with torch.inference_mode():
            return network(images).numpy()
    except RuntimeError as error:
        raise NotCompared(f"the official network cannot run ({error})") from None


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest absolute difference, divided by the largest value of `theirs`."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
