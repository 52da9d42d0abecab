"""The train state: one pytree with everything that is needed to resume."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.models.pure_model import Arrays, arrays_of
from fastervit_jax.parallel.partition import state_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes during training.

    Random keys are not part of it. The random draws of step n only depend on the seed and on n.

    Attributes:
        step: number of updates done, int32 scalar.
        params: parameters by dotted name.
        statistics: batch norm statistics by dotted name.
        optimizer: state of the optimizer.
        ema: EMA of parameters and statistics by dotted name.
        skipped: number of steps that were skipped because the loss or a gradient was not finite,
            int32 scalar.
        skipped_in_a_row: number of skipped steps since the last step that was not, int32 scalar.
    """

    step: jax.Array
    params: Arrays
    statistics: Arrays
    optimizer: optax.OptState
    ema: Arrays
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def new_state(
    params: Arrays, statistics: Arrays, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step. The EMA starts as a copy of the model."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        ema={name: jnp.copy(array) for name, array in {**params, **statistics}.items()},
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def abstract_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the shapes, dtypes and shardings of a train state, without computing it.

    Args:
        model: the model, which may be abstract (`nnx.eval_shape`).
        optimizer: the optimizer.
        mesh: the mesh over which `partition` splits the arrays.
    """
    state = jax.eval_shape(
        lambda params, statistics: new_state(params, statistics, optimizer), *arrays_of(model)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        state_shardings(state, mesh),
    )


def place_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state before the first step on a mesh, from a model in this host's memory.

    Every host must have the same model. No device ever has more than its part of the state.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))

    def place(array: jax.Array, sharding) -> jax.Array:
        on_host = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: on_host[part])

    params, statistics = arrays_of(model)
    chex.assert_trees_all_equal_structs(params, places.params)
    chex.assert_trees_all_equal_structs(statistics, places.statistics)
    params = {name: place(array, places.params[name]) for name, array in params.items()}
    statistics = {n: place(array, places.statistics[n]) for n, array in statistics.items()}
    return jax.jit(
        lambda params, statistics: new_state(params, statistics, optimizer), out_shardings=places
    )(params, statistics)


def ema_model(state: TrainState) -> tuple[Arrays, Arrays]:
    """Returns the EMA of the parameters and of the statistics."""
    chex.assert_trees_all_equal_shapes(state.ema, {**state.params, **state.statistics})
    return (
        {name: state.ema[name] for name in state.params},
        {name: state.ema[name] for name in state.statistics},
    )
