"""Which part of every array lives on which device: the only place that decides it."""

import functools
import re

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fastervit_jax.models.pure_model import Arrays, PureModel

# What the axis `tensor` splits, by the end of a parameter's name: the axis of the array. First
# layers are split by output, second ones by input, so that a pair needs one sum at its end.
_TENSOR_AXIS = [
    (r"(qkv|mlp\.expand)\.kernel$", 1),
    (r"(qkv|mlp\.expand)\.bias$", 0),
    (r"(projection|mlp\.contract)\.kernel$", 0),
]


def parameter_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Which mesh axis splits each axis of a parameter, by its dotted name and shape.

    `tensor` splits the attention blocks' linear layers, whose widths it must divide
    (`config.check_config`). `fsdp` then splits the longest axis that it
    divides; an array without one is kept whole on every device.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    for pattern, axis in _TENSOR_AXIS if tensor > 1 else ():
        if re.search(pattern, name):
            axes[axis] = "tensor"
    if fsdp > 1:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % fsdp == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def gather(params: Arrays, mesh: Mesh, *, but: tuple[str, ...] = ()) -> Arrays:
    """Parameters as the network uses them: put together from their parts along `fsdp`.

    Their gradients come back in parts. Without this the compiler is free to split the network's
    maps as the parameters are, and moves them instead.

    Args:
        params: by dotted name, or its end, placed as `parameter_spec` says; traced.
        mesh: the mesh.
        but: beginnings of names that are left as they are (`gather_in_loops`).
    """
    if mesh.shape["fsdp"] == 1:
        return params
    return {
        name: array if name.startswith(but) else _gathered(array, name, mesh)
        for name, array in params.items()
    }


class GatheredModel:
    """A split model that is given parameters in parts, and puts them together where it uses them.

    Args:
        model: the model.
        mesh: the mesh that its parameters are split over, as `parameter_spec` says.
    """

    def __init__(self, model: PureModel, mesh: Mesh):
        self._model = model
        self._mesh = mesh

    def train(self, params: Arrays, statistics: Arrays, images: jax.Array, key: jax.Array):
        """`PureModel.train`."""
        return self._model.train(self._gathered(params), statistics, images, key)

    def infer(self, params: Arrays, statistics: Arrays, images: jax.Array) -> jax.Array:
        """`PureModel.infer`."""
        return self._model.infer(self._gathered(params), statistics, images)

    def _gathered(self, params: Arrays) -> Arrays:
        return gather(params, self._mesh, but=self._model.looped)


def gather_in_loops(model: nnx.Module, mesh: Mesh) -> None:
    """Lets blocks that run as a loop put their parameters together one block at a time."""
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
    """Shardings for a tree that holds parameters, or arrays like them, under their names.

    Args:
        state: arrays or their shapes, in any tree whose dictionaries of parameters are keyed by
            dotted names, as a `TrainState`'s parameters, averages and optimizer moments are.
        mesh: the mesh.

    Returns:
        The same tree of `NamedSharding`. Arrays without a parameter's name are on every device.
    """

    def sharding(path, leaf) -> NamedSharding:
        name = _parameter_name(path)
        spec = parameter_spec(name, leaf.shape, mesh) if name else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _parameter_name(path) -> str | None:
    """The last key of a tree path, where it is a dotted name."""
    last = path[-1] if path else None
    if isinstance(last, jax.tree_util.DictKey) and "." in str(last.key):
        return str(last.key)
    return None
