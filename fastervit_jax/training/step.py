"""One step of training: a pure function (state, batch) → (state, metrics)."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.parallel.compiler import compiler_options
from fastervit_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from fastervit_jax.parallel.partition import GatheredModel
from fastervit_jax.runs.state import TrainState
from fastervit_jax.training.few_kernels import share_operands
from fastervit_jax.training.task import Batch, Metrics, Objective


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step does beside the model and the optimizer.

    Attributes:
        seed: seed of everything random in the step.
        objective: what is minimized.
        ema_decay: decay of the EMA, per step.
        accumulate: number of parts of a batch, which go through the network one after the other.
    """

    seed: int
    objective: Objective
    ema_decay: float
    accumulate: int = 1


def make_train_step(
    model: PureModel,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step, not yet compiled (see `compile_train_step`).

    Its metrics are scalars: `loss`; those of the objective; `gradient_norm` before clipping;
    `skipped`, 1 where loss or gradients were not finite. Such a step changes nothing but the counts
    of steps.
    """
    network = GatheredModel(model, mesh)
    objective = settings.objective

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        prepare_key, loss_key = jax.random.split(key)
        prepared = objective.prepare(prepare_key, batch, mesh)
        gradients, (metrics, statistics) = _gradients(state, prepared, loss_key)
        gradients, statistics = share_operands((gradients, statistics), mesh)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)

        metrics["gradient_norm"] = optax.tree.norm(gradients)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        metrics["skipped"] = (~finite).astype(jnp.int32)

        def where_finite(new, old):
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        # The EMA moves towards what was chosen: a TPU then passes over a parameter once, not
        # twice (benchmarks/NOTES.md).
        params = where_finite(optax.apply_updates(state.params, updates), state.params)
        statistics = where_finite(statistics, state.statistics)
        ema = _moved_ema(state.ema, {**params, **statistics}, settings.ema_decay)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            optimizer=where_finite(optimizer_state, state.optimizer),
            ema=where_finite(ema, state.ema),
            skipped=state.skipped + metrics["skipped"],
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        return new_state, metrics

    def _gradients(state: TrainState, batch: Batch, key: jax.Array):
        """Gradients of the loss, and (metrics, statistics), as means over the batch's parts."""

        def loss(params: Arrays, batch: Batch, key: jax.Array):
            return objective.loss(network, params, state, batch, key)

        def of_part(index, batch: Batch):
            part_key = jax.random.fold_in(key, index)
            value_and_grad = jax.value_and_grad(loss, has_aux=True)
            (value, (metrics, statistics)), gradients = value_and_grad(
                state.params, batch, part_key
            )
            return gradients, ({"loss": value, **metrics}, statistics)

        if settings.accumulate == 1:
            return of_part(0, batch)
        in_parts = {name: _in_parts(a, settings.accumulate, mesh) for name, a in batch.items()}
        parts = (jnp.arange(settings.accumulate), in_parts)
        shapes = jax.eval_shape(of_part, *jax.tree.map(lambda part: part[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, of_part(*part)), None

        sums, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda total: total / settings.accumulate, sums)

    return train_step


def _moved_ema(ema: Arrays, new: Arrays, decay: float) -> Arrays:
    """The EMA after one more step; what does not change stays the same to the bit."""
    return {name: old + (1 - decay) * (new[name] - old) for name, old in ema.items()}


def _in_parts(array: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[N, …] → [parts, N/parts, …], every part spread over all devices, none of it moved.

    Images are dealt out to the parts in turn, so that a part is the same on every mesh.
    """
    array = array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(
        array, NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    )


def compile_train_step(
    train_step,
    state_shapes: TrainState,
    mesh: Mesh,
    options: dict[str, bool | str] | None = None,
):
    """Jits a step for a mesh: state and batch stay where they are, the old state is reused.

    Args:
        train_step: of `make_train_step`.
        state_shapes: of `state.abstract_state`.
        mesh: the mesh.
        options: options of the compiler. Default: what pays on the mesh's platform
            (`parallel.compiler`).
    """
    state_places = jax.tree.map(lambda leaf: leaf.sharding, state_shapes)
    return jax.jit(
        train_step,
        in_shardings=(state_places, batch_sharding(mesh)),
        out_shardings=(state_places, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh) if options is None else options,
    )
