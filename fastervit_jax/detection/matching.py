"""Which query detects which box: the assignment with the lowest cost (Carion et al., 2020).

optax solves it on the device: exact, on any mesh and number of hosts, and without a call to the
host, which a program compiled for a pod that is not there could not have. Each device solves it for
its own images. Otherwise its loops would ask all devices, at every turn, whether they are done.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from fastervit_jax.detection.boxes import generalized_iou, to_corners
from fastervit_jax.detection.losses import FOCAL_ALPHA
from fastervit_jax.parallel.mesh import BATCH_AXES

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0


def matching_costs(
    logits: jax.Array, boxes: jax.Array, labels: jax.Array, targets: jax.Array
) -> jax.Array:
    """Cost of giving a box to a query, float32 [N, Q, M].

    Args:
        logits: of the classes, [N, Q, classes].
        boxes: predicted center boxes, [N, Q, 4].
        labels: classes of the ground truth, int32 [N, M].
        targets: its center boxes, [N, M, 4].
    """
    tiny = 1e-8
    p = jax.nn.sigmoid(logits)
    detected = FOCAL_ALPHA * (1 - p) ** 2 * -jnp.log(p + tiny)
    refused = (1 - FOCAL_ALPHA) * p**2 * -jnp.log(1 - p + tiny)
    by_class = jnp.take_along_axis(detected - refused, labels[:, None, :], axis=2)
    distance = jnp.abs(boxes[:, :, None] - targets[:, None]).sum(axis=-1)
    overlap = generalized_iou(to_corners(boxes)[:, :, None], to_corners(targets)[:, None])
    return BOX_COST * distance + CLASS_COST * by_class - GIOU_COST * overlap


def match(
    logits: jax.Array, boxes: jax.Array, labels: jax.Array, targets: jax.Array, counts: jax.Array
) -> jax.Array:
    """The query of each box, int32 [N, M]; those beyond an image's `counts` [N] mean nothing.

    Other arguments are those of `matching_costs`. No gradient passes.
    """
    costs = jax.lax.stop_gradient(matching_costs(logits, boxes, labels, targets))
    real = jnp.arange(labels.shape[1]) < counts[:, None]
    # Padding costs the same everywhere, so it does not change what is best for the others. Costs
    # that are not finite belong to a step that is skipped.
    costs = jnp.where(real[:, None], jnp.nan_to_num(costs), 0)
    return jax.vmap(_assign)(costs)


def match_outputs(
    logits: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    targets: jax.Array,
    counts: jax.Array,
    mesh: Mesh | None = None,
) -> jax.Array:
    """`match` for several outputs, each device for its own images.

    Args:
        logits: [outputs, N, Q, classes].
        boxes: [outputs, N, Q, 4].
        labels: [N, M].
        targets: [N, M, 4].
        counts: [N].
        mesh: over which the images are split; None: one device.

    Returns:
        int32 [outputs, N, M].
    """

    def match_all(logits, boxes, labels, targets, counts):
        return jax.vmap(match, in_axes=(0, 0, None, None, None))(
            logits, boxes, labels, targets, counts
        )

    arguments = jax.lax.stop_gradient((logits, boxes, labels, targets, counts))
    if mesh is None or mesh.size == 1:
        return match_all(*arguments)
    of_images, of_outputs = PartitionSpec(BATCH_AXES), PartitionSpec(None, BATCH_AXES)
    return jax.shard_map(
        match_all,
        mesh=mesh,
        in_specs=(of_outputs, of_outputs, of_images, of_images, of_images),
        out_specs=of_outputs,
        check_vma=False,  # optax's loops start from constants
    )(*arguments)


def _assign(costs: jax.Array) -> jax.Array:
    """[Q, M], Q ≥ M → the query of each box, int32 [M]."""
    queries, boxes = optax.assignment.hungarian_algorithm(costs)
    return jnp.zeros(costs.shape[1], jnp.int32).at[boxes].set(queries.astype(jnp.int32))
