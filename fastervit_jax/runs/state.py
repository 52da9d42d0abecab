"""The train state: one pytree that holds all that resuming needs."""

import dataclasses

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
    """Everything that changes in training.

    Randomness is no part of it: what step n draws is a function of the seed and n.

    Attributes:
        step: updates done, int32 scalar.
        params: parameters by dotted name.
        statistics: batch-norm statistics by dotted name.
        optimizer: the optimizer's state.
        ema: EMA of parameters and statistics by dotted name.
        skipped: steps that changed nothing because loss or gradients were not finite.
        skipped_in_a_row: how many of the last steps those were.
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
    """The state before the first step; the EMA starts as a copy of the model."""
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
    """Shapes, types and places of a train state, without computing any of it.

    Args:
        model: may be abstract (`nnx.eval_shape`).
        optimizer: the optimizer.
        mesh: where `partition` places the arrays.
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
    """The state before the first step on a mesh, from a model that this host holds whole.

    Every host must have made the same model. No device ever holds more than its part.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, optimizer, mesh))

    def place(array: jax.Array, sharding) -> jax.Array:
        on_host = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: on_host[part])

    params, statistics = arrays_of(model)
    params = {name: place(array, places.params[name]) for name, array in params.items()}
    statistics = {n: place(array, places.statistics[n]) for n, array in statistics.items()}
    return jax.jit(
        lambda params, statistics: new_state(params, statistics, optimizer), out_shardings=places
    )(params, statistics)


def ema_model(state: TrainState) -> tuple[Arrays, Arrays]:
    """The EMA as (parameters, statistics)."""
    return (
        {name: state.ema[name] for name in state.params},
        {name: state.ema[name] for name in state.statistics},
    )
