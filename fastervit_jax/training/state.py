"""The train state: one pytree that holds all that resuming needs."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fastervit_jax.models.functional import Arrays
from fastervit_jax.training.partition import state_shardings


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
        average: moving average of parameters and statistics by dotted name.
    """

    step: jax.Array
    params: Arrays
    statistics: Arrays
    optimizer: optax.OptState
    average: Arrays


def new_state(
    params: Arrays, statistics: Arrays, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step; the average starts as a copy of the model."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        average={name: jnp.copy(array) for name, array in {**params, **statistics}.items()},
    )


def abstract_on_mesh(make: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, types and places of the arrays of `make()`, without computing any."""
    abstract = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        state_shardings(abstract, mesh),
    )


def create_on_mesh(make: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Computes `make()` with every array where `partition` wants it from the start."""
    abstract = abstract_on_mesh(make, mesh)
    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()


def average_model(state: TrainState) -> tuple[Arrays, Arrays]:
    """The moving average as (parameters, statistics)."""
    return (
        {name: state.average[name] for name in state.params},
        {name: state.average[name] for name in state.statistics},
    )
