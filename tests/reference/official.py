"""The official model, with weights that show mistakes, and ours with the same weights.

The official initialisation hides mistakes: layer scale starts at 1e-5, statistics at 0 and 1. Here
weights are of order 1/√fan-in, gammas and norm scales of order 1, statistics far from trivial.
"""

import math

import fastervit.models.faster_vit
import fastervit.models.faster_vit_any_res
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from fastervit_jax.models import VARIANTS, FasterViT, abstract_model, variant_config
from fastervit_jax.weights.names import from_torch_layout, torch_name
from tests.quick_compilation import quick_jit

DERIVED = ("relative_coords_table", "relative_position_index", "relative_bias")


def official_model(name: str, *, seed: int = 0, **options) -> torch.nn.Module:
    """The official network in float64 and inference mode, with informative weights.

    Built by its class, since the official functions do not let every option be chosen;
    `test_variants.py` compares these functions' own choices with ours.
    """
    options = {"ct_size": 2, "mlp_ratio": 4, "window_size": (7, 7, 7, 7)} | VARIANTS[name] | options
    if options.pop("any_res", False):
        package = fastervit.models.faster_vit_any_res
    else:
        package = fastervit.models.faster_vit
        resolution = options.get("resolution", 224)
        options["resolution"] = resolution[0] if isinstance(resolution, tuple) else resolution
    model = package.FasterViT(**options).double().eval()
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter and statistic with informative values."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    seen = set()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name.endswith((*DERIVED, "num_batches_tracked")) or tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            if name.endswith("running_var"):
                value = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            elif tensor.ndim > 1:
                value = normal(tensor.shape) / math.sqrt(tensor[0].numel())
            elif "gamma" in name or (name.endswith("weight") and tensor.ndim == 1):
                value = 1 + 0.3 * normal(tensor.shape)
            else:
                value = 0.3 * normal(tensor.shape)
            tensor.copy_(value)


def flat_state(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Our parameters and statistics by dotted name."""
    leaves = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): variable for path, variable in leaves}


def our_model(name: str, theirs: torch.nn.Module, *, dtype=jnp.float32, **options) -> FasterViT:
    """Our network in inference mode with the official weights, in float32 or a wider `dtype`."""
    model = abstract_model(variant_config(name, **options), dtype=dtype)
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    copy_weights(theirs, model, param_dtype)
    model.eval()
    return model


def copy_weights(theirs: torch.nn.Module, model: nnx.Module, dtype=jnp.float32) -> None:
    """Sets every array of ours from the official model."""
    state = theirs.state_dict()
    for name, variable in flat_state(model).items():
        value = from_torch_layout(state[torch_name(name)].numpy())
        assert value.shape == variable.shape, name
        variable.set_value(jnp.asarray(value, dtype))


def our_outputs(model: FasterViT, nhwc: np.ndarray) -> tuple[np.ndarray, list]:
    """Logits and the four stages' maps of our model, computed in one compiled pass."""
    graph, state = nnx.split(model)

    @quick_jit
    def run(state, batch):
        model = nnx.merge(graph, state)
        maps = model.features(batch)
        return model.classify(maps[-1]), maps

    return run(state, jnp.asarray(nhwc, jnp.promote_types(model.dtype, jnp.float32)))


def images(n: int, height: int, width: int, channels: int = 3, seed: int = 1) -> np.ndarray:
    """Normal noise, [n, height, width, channels] float64."""
    return np.random.default_rng(seed).standard_normal((n, height, width, channels))


def to_torch(nhwc: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] → the official [N, C, H, W]."""
    return torch.from_numpy(nhwc.transpose(0, 3, 1, 2).copy())


def official_outputs(model: torch.nn.Module, nhwc: np.ndarray) -> tuple[np.ndarray, list]:
    """Logits and the four stages' maps before downsampling (NHWC) of the official model."""
    maps = []

    def keep(_, inputs):
        maps.append(inputs[0])

    hooks = [level.downsample.register_forward_pre_hook(keep) for level in list(model.levels)[:3]]
    hooks.append(model.norm.register_forward_pre_hook(keep))
    logits = model(to_torch(nhwc))
    for hook in hooks:
        hook.remove()
    return logits.detach().numpy(), [m.detach().numpy().transpose(0, 2, 3, 1) for m in maps]


def largest_difference(ours, theirs) -> float:
    """Largest absolute difference over the largest absolute value of theirs."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
