"""The two sides of every comparison: the official network, and ours with its weights."""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from fastervit_jax.models import FasterViT, abstract_model, list_models, variant_config
from fastervit_jax.weights.names import from_torch_layout, torch_name

if not torch.cuda.is_available() and not hasattr(torch.ops.torchvision, "nms"):
    # A torchvision built for CUDA cannot be imported beside a CPU torch until the schemas of the
    # two operators that its extension would have brought are declared.
    _torchvision = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float threshold) -> Tensor")


def name_of(number: int, *, any_res: bool = False) -> str:
    """The name of a model from 0 to 6."""
    name = f"faster_vit_{number}_{'any_res' if any_res else '224'}"
    if name not in list_models("faster_vit_*"):
        raise SystemExit(f"There is no model {number}: choose from 0 to 6.")
    return name


def official(name: str, device: str, **options) -> torch.nn.Module:
    """The official network with its own initial weights, channels-last, in inference mode."""
    import fastervit

    with torch.device("cuda" if device == "gpu" else "cpu"):
        torch.manual_seed(0)
        model = fastervit.create_model(name, **options)
    return model.eval().to(memory_format=torch.channels_last)


def ours(name: str, theirs: torch.nn.Module, *, dtype: str, **options) -> FasterViT:
    """Our network with the weights of an official one, in inference mode."""
    model = abstract_model(variant_config(name, **options), dtype=jnp.dtype(dtype))
    state = theirs.state_dict()
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = state[torch_name(".".join(map(str, path)))].float().cpu().numpy()
        variable.set_value(jnp.asarray(from_torch_layout(value)))
    model.eval()
    return model


def deployed_official(model: torch.nn.Module, images: torch.Tensor) -> torch.nn.Module:
    """A copy that keeps the positions it computes for these images (`switch_to_deploy`)."""
    model = copy.deepcopy(model)
    with torch.inference_mode():
        model(images)
    for module in model.modules():
        if hasattr(module, "switch_to_deploy"):
            module.switch_to_deploy()
    return model


def images_of(batch: int, resolution: tuple[int, int]) -> np.ndarray:
    """Normal noise, [N, H, W, 3] float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *resolution, 3), dtype=np.float32)


def to_torch(images: np.ndarray, device: str) -> torch.Tensor:
    """[N, H, W, 3] → [N, 3, H, W], channels-last in memory."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return tensor.to("cuda" if device == "gpu" else "cpu")


def forward(model: FasterViT) -> tuple[Callable, list[jax.Array]]:
    """A forward pass as a function of (arrays, images), and the arrays.

    The arrays come as a plain list, which costs nothing to hand to a compiled function.
    """
    graph, state = nnx.split(model)
    arrays, tree = jax.tree.flatten(state)

    def run(arrays, images):
        return nnx.merge(graph, jax.tree.unflatten(tree, arrays))(images)

    return run, arrays


def torch_repeat(function: Callable) -> Callable[[int], None]:
    """Calls of a torch function, of which only the last is waited for."""

    def run(calls: int) -> None:
        for _ in range(calls):
            function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def difference(ours: jax.Array, theirs: torch.Tensor) -> float:
    """Largest difference of logits over the largest of theirs: both compute the same."""
    a, b = np.asarray(ours, np.float64), theirs.detach().double().cpu().numpy()
    return float(np.abs(a - b).max() / np.abs(b).max())
