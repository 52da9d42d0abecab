"""One step of training: a pure function (state, batch) → (state, metrics)."""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from fastervit_jax.models.functional import Arrays, PureModel
from fastervit_jax.training.device_augmentation import AugmentationSettings, augment
from fastervit_jax.training.losses import soft_target_cross_entropy
from fastervit_jax.training.mesh import batch_sharding, replicated
from fastervit_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What a step does beside the model and the optimizer.

    Attributes:
        seed: of everything random in the step.
        augmentation: what happens to images and labels on the device.
        average_decay: decay of the moving average, per step.
    """

    seed: int
    augmentation: AugmentationSettings
    average_decay: float


def make_train_step(
    model: PureModel,
    optimizer: optax.GradientTransformation,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step, not yet compiled (see `compile_train_step`).

    Its batch has `image`, uint8 [N, H, W, 3], and `label`, int32 [N]. Its metrics are scalars:
    `loss`, `gradient_norm` before clipping.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        augmentation_key, dropout_key = jax.random.split(key)
        images, targets = augment(
            augmentation_key, batch["image"], batch["label"], settings.augmentation, mesh=mesh
        )

        def loss_of(params: Arrays) -> tuple[jax.Array, Arrays]:
            logits, statistics = model.train(params, state.statistics, images, dropout_key)
            return soft_target_cross_entropy(logits, targets), statistics

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(
            step=state.step + 1,
            params=params,
            statistics=statistics,
            optimizer=optimizer_state,
            average=_moved(state.average, {**params, **statistics}, settings.average_decay),
        )
        return state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    return train_step


def _moved(average: Arrays, new: Arrays, decay: float) -> Arrays:
    """The moving average after one more step."""
    return {name: decay * average[name] + (1 - decay) * new[name] for name in average}


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
