"""One step of training: a pure function (state, batch) → (state, metrics)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fastervit_jax.augmentation.device import AugmentationSettings, augment
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.parallel.mesh import BATCH_AXES, batch_sharding, batch_shards, replicated
from fastervit_jax.parallel.partition import gather
from fastervit_jax.runs.state import TrainState, ema_model
from fastervit_jax.training.losses import mesa_divergence, soft_target_cross_entropy

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

MESA_FACTOR = 50
"""The constant that the official script multiplies the MESA weight by."""


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step does beside the model and the optimizer.

    Attributes:
        seed: of everything random in the step.
        augmentation: what happens to images and labels on the device.
        ema_decay: decay of the EMA, per step.
        mesa_weight: of the divergence from the EMA's answers; 0 leaves it out.
        mesa_start: updates done before the first one with it.
        accumulate: into how many parts a batch is cut that go through the network one by one.
    """

    seed: int
    augmentation: AugmentationSettings
    ema_decay: float
    mesa_weight: float = 0.0
    mesa_start: int = 0
    accumulate: int = 1


def make_train_step(
    model: PureModel,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step, not yet compiled (see `compile_train_step`).

    Its batch has `image`, uint8 [N, H, W, 3], and `label`, int32 [N]. Its metrics are scalars:
    `loss`, that of MESA included; `gradient_norm` before clipping; `mesa`, the divergence, where it
    is on; `skipped`, 1 where loss or gradients were not finite. Such a step changes nothing but the
    counts of steps.
    """
    # A mixing group that a device holds in part can only be mixed across devices.
    held = settings.augmentation.group_size * batch_shards(mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        augmentation_key, dropout_key = jax.random.split(key)
        whole_groups = len(batch["image"]) % held == 0
        images, targets = augment(
            augmentation_key,
            batch["image"],
            batch["label"],
            settings.augmentation,
            mesh=mesh if whole_groups else None,
        )
        gradients, (metrics, statistics) = _gradients(state, images, targets, dropout_key)
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
        return new_state, metrics

    def _gradients(state: TrainState, images: jax.Array, targets: jax.Array, key: jax.Array):
        """Gradients of the loss, and (metrics, statistics), as means over the batch's parts."""
        gradients_of = jax.value_and_grad(_loss, has_aux=True)

        def of_part(index, images, targets):
            part_key = jax.random.fold_in(key, index)
            (loss, (mesa, statistics)), gradients = gradients_of(
                state.params, state, images, targets, part_key
            )
            metrics = {"loss": loss, "mesa": mesa} if settings.mesa_weight else {"loss": loss}
            return gradients, (metrics, statistics)

        if settings.accumulate == 1:
            return of_part(0, images, targets)
        parts = (
            jnp.arange(settings.accumulate),
            _in_parts(images, settings.accumulate, mesh),
            _in_parts(targets, settings.accumulate, mesh),
        )
        shapes = jax.eval_shape(of_part, *jax.tree.map(lambda part: part[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, of_part(*part)), None

        sums, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda total: total / settings.accumulate, sums)

    def _loss(params: Arrays, state: TrainState, images, targets, key):
        """The loss, and (divergence from the EMA's answers, updated statistics)."""
        logits, statistics = model.train(
            gather(params, mesh, but=model.looped), state.statistics, images, key
        )
        loss = soft_target_cross_entropy(logits, targets)
        if not settings.mesa_weight:
            return loss, (jnp.zeros_like(loss), statistics)

        def divergence(_):
            ema, ema_statistics = ema_model(state)
            ema = gather(ema, mesh, but=model.looped)
            teacher = model.infer(ema, ema_statistics, images)
            return mesa_divergence(logits, teacher)

        started = state.step >= settings.mesa_start
        mesa = jax.lax.cond(started, divergence, lambda _: jnp.zeros_like(loss), None)
        return loss + settings.mesa_weight * MESA_FACTOR * mesa, (mesa, statistics)

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


def compile_train_step(train_step, state_shapes: TrainState, mesh: Mesh):
    """Jits a step for a mesh: state and batch stay where they are, the old state is reused.

    Args:
        train_step: of `make_train_step`.
        state_shapes: of `state.abstract_state`.
        mesh: the mesh.
    """
    state_places = jax.tree.map(lambda leaf: leaf.sharding, state_shapes)
    return jax.jit(
        train_step,
        in_shardings=(state_places, batch_sharding(mesh)),
        out_shardings=(state_places, replicated(mesh)),
        donate_argnums=0,
    )
