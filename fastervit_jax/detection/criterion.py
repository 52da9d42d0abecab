"""The loss of a batch: every output of the network against the ground truth."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fastervit_jax.detection.denoising import DenoisingLayout
from fastervit_jax.detection.dino import Outputs
from fastervit_jax.detection.losses import Losses, detection_losses
from fastervit_jax.detection.matching import match_outputs


class GroundTruth(NamedTuple):
    """Objects of a batch.

    Attributes:
        labels: classes, int32 [N, M]; 0 for padding.
        boxes: center boxes, [N, M, 4]; 0 for padding.
        counts: number of objects of each image, int32 [N].
    """

    labels: jax.Array
    boxes: jax.Array
    counts: jax.Array


def all_losses(
    outputs: Outputs,
    truth: GroundTruth,
    denoising: DenoisingLayout | None,
    mesh: Mesh | None = None,
) -> dict[str, Losses]:
    """Sums of the losses for each image, by output.

    Args:
        outputs: of the network, with denoising queries in front where there are any.
        truth: the ground truth.
        denoising: what the denoising queries are; None: there are none.
        mesh: over which the images are split; None: one device.

    Returns:
        `last` is the last layer; `layer0` and so on those before; `selected` the proposals;
        `denoising0` and so on the denoising queries of each layer. Those are not yet divided by the
        number of groups.
    """
    slots = 0 if denoising is None else denoising.box.shape[1]
    logits = jnp.concatenate([outputs.logits[:, :, slots:], outputs.selected_logits[None]])
    boxes = jnp.concatenate([outputs.boxes[:, :, slots:], outputs.selected_boxes[None]])
    real = jnp.arange(truth.labels.shape[1]) < truth.counts[:, None]

    query = match_outputs(logits, boxes, *truth, mesh)

    def matched(logits, boxes, query):
        return detection_losses(logits, boxes, query, real, truth.labels, truth.boxes)

    losses = jax.vmap(matched)(logits, boxes, query)
    layers = len(outputs.logits)
    names = [f"layer{i}" for i in range(layers - 1)] + ["last", "selected"]
    by_output = {name: Losses(*(each[i] for each in losses)) for i, name in enumerate(names)}
    if denoising is not None and slots:
        noisy = outputs.logits[:, :, :slots], outputs.boxes[:, :, :slots]

        def noisy_losses(logits, boxes):
            return denoising_losses(logits, boxes, truth, denoising)

        losses = jax.vmap(noisy_losses)(*noisy)
        for i in range(layers):
            by_output[f"denoising{i}"] = Losses(*(each[i] for each in losses))
    return by_output


def denoising_losses(
    logits: jax.Array, boxes: jax.Array, truth: GroundTruth, where: DenoisingLayout
) -> Losses:
    """Losses of denoising queries, whose boxes are known: [N, D, …].

    Positive queries shall find their boxes; all others of the groups shall find nothing.
    """
    labels = jnp.take_along_axis(truth.labels, where.box, axis=1)
    targets = jnp.take_along_axis(truth.boxes, where.box[..., None], axis=1)
    query = jnp.broadcast_to(jnp.arange(where.box.shape[1]), where.box.shape)
    real = where.real & where.positive
    return detection_losses(logits, boxes, query, real, labels, targets, counted=where.used)


def total_loss(
    losses: dict[str, Losses], truth: GroundTruth, denoising: DenoisingLayout | None
) -> dict[str, jax.Array]:
    """Losses of each image, weighted and without the division by the number of boxes, [N].

    Returns:
        `loss`, the sum of all; `class`, `box` and `giou`, those of the last layer before they are
        weighted; `selected` and `denoising`, parts of `loss`.
    """
    total = jnp.zeros(truth.counts.shape, jnp.float32)
    parts = {"selected": losses["selected"].weighted(), "denoising": total}
    for name, each in losses.items():
        weighted = each.weighted()
        if name.startswith("denoising"):
            assert denoising is not None
            weighted = weighted / denoising.groups
            parts["denoising"] += weighted
        total += weighted
    last = losses["last"]
    parts |= {"class": last.classes, "box": last.boxes, "giou": last.giou}
    return {"loss": total, **parts}
