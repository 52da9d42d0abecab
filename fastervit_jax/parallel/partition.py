"""Partition rules: which part of each array is on which device. No other file decides this."""

import functools
import re

import chex
import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fastervit_jax.models.pure_model import Arrays, PureModel

# For the mesh axis `tensor`: the end of a parameter's name, and the array axis that is split. First
# layers are split by output, second layers by input. A pair of layers then needs only one sum.
_TENSOR_AXIS = [
    (r"(qkv|mlp\.expand)\.kernel$", 1),
    (r"(qkv|mlp\.expand)\.bias$", 0),
    (r"(projection|mlp\.contract)\.kernel$", 0),
]


def parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the partition spec of a parameter.

    `tensor` splits the linear layers of the attention blocks. It must divide their widths
    (`config_checks.check_config`). `fsdp` then splits the longest remaining axis that it divides.
    An array without such an axis is not split by `fsdp`.

    Args:
        name: dotted name of the parameter, or its end.
        shape: shape of the parameter.
        mesh: the mesh.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for pattern, axis in _TENSOR_AXIS if tensor > 1 else ():
        if re.search(pattern, name):
            assert axis < len(shape), f"{name} of shape {shape} has no axis {axis} to split"
            axes[axis] = "tensor"
    if fsdp > 1:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % fsdp == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def gather(params: Arrays, mesh: Mesh, *, but: tuple[str, ...] = ()) -> Arrays:
    """Gathers parameters that are split along `fsdp`, for use in the network.

    The gradients are split again. Without this function, the compiler may split the feature maps in
    the same way as the parameters, and move the feature maps instead.

    Args:
        params: traced parameters by dotted name, or its end, sharded as in `parameter_spec`.
        mesh: the mesh.
        but: beginnings of names that are not gathered (see `gather_in_loops`).

    Returns:
        The gathered parameters, with the same names, shapes and dtypes.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    gathered = {
        name: array if name.startswith(but) else _gathered(array, name, mesh)
        for name, array in params.items()
    }
    chex.assert_trees_all_equal_shapes_and_dtypes(gathered, params)
    return gathered


class GatheredModel:
    """A model that takes split parameters and gathers them where it uses them.

    Attributes:
        mesh: the mesh over which the parameters are split, as in `parameter_spec`.
    """

    def __init__(self, model: PureModel, mesh: Mesh):
        self._model = model
        self.mesh = mesh

    def train(self, params: Arrays, statistics: Arrays, images: jax.Array, key: jax.Array):
        """Calls `PureModel.train` with gathered parameters."""
        return self._model.train(self._gathered(params), statistics, images, key)

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """Calls `PureModel.infer` with gathered parameters."""
        return self._model.infer(self._gathered(params), statistics, images)

    def _gathered(self, params: Arrays) -> Arrays:
        return gather(params, self.mesh, but=self._model.looped)


def gather_in_loops(model: nnx.Module, mesh: Mesh) -> None:
    """Makes blocks that run in a loop gather their parameters one block at a time."""
    if mesh.shape["fsdp"] > 1:
        model.set_attributes(gather=functools.partial(gather, mesh=mesh))


def _gathered(array: jax.Array, name: str, mesh: Mesh) -> jax.Array:
    parts = parameter_spec(name, array.shape, mesh)
    whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in parts))

    @jax.custom_vjp
    def together(array):
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, whole))

    def backward(_, gradient):
        return (jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, parts)),)

    together.defvjp(lambda array: (together(array), None), backward)
    return together(array)


def state_shardings(state, mesh: Mesh):
    """Returns the shardings of a tree of parameters and arrays like them.

    Args:
        state: arrays or their shapes, in any tree. Its dictionaries of parameters have dotted names
            as keys. Examples are the parameters, EMA and optimizer moments of a `TrainState`.
        mesh: the mesh.

    Returns:
        The same tree with a `NamedSharding` per array. An array without the name of a parameter is
        on every device in full.
    """

    def sharding(path, leaf) -> NamedSharding:
        name = _parameter_name(path)
        spec = parameter_spec(name, leaf.shape, mesh) if name else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _parameter_name(path) -> str | None:
    """Returns the last key of a tree path if it is a dotted name."""
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.DictKey) and "." in str(last.key):
        return str(last.key)
    return None
