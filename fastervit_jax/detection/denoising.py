"""Denoising queries (section 3.3 of the paper of DINO, and section 4 of that of DN-DETR).

In training, further queries start from ground-truth boxes with noise, and learn to undo it. Every
group of them holds each box twice: near it, to be detected, and further away, to be refused.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastervit_jax.detection.boxes import logit, to_centers, to_corners
from fastervit_jax.detection.dino import Denoising


@dataclasses.dataclass(frozen=True)
class DenoisingSettings:
    """How denoising queries are made. The defaults are the official ones.

    Attributes:
        queries: about how many; as many groups as fit in, but at least one.
        label_noise: probability that the class of a query is redrawn.
        box_noise: largest move of a corner of a query that is to be detected, as a share of half
            the width or height; the others are moved once to twice as far.
    """

    queries: int = 200
    label_noise: float = 0.25
    box_noise: float = 0.4

    def slots(self, max_boxes: int) -> int:
        """Queries that a program has room for, with at most `max_boxes` boxes per image."""
        return max(self.queries, 2 * max_boxes) if self.queries else 0


class DenoisingLayout(NamedTuple):
    """What each slot for a denoising query is, by image: [N, D], and the groups, [N].

    Attributes:
        box: index of its box.
        positive: whether it is to detect its box.
        used: whether it belongs to a group. A group of an image with fewer boxes than another one
            of the batch has slots without a box, which are used as the official code uses them.
        real: whether it has a box.
        group: number of its group.
        groups: number of groups.
    """

    box: jax.Array
    positive: jax.Array
    used: jax.Array
    real: jax.Array
    group: jax.Array
    groups: jax.Array


def layout(counts: jax.Array, slots: int, settings: DenoisingSettings, per_gpu: int):
    """Lays out denoising queries.

    Args:
        counts: number of boxes of each image, int32 [N].
        slots: of `DenoisingSettings.slots`.
        settings: how many queries.
        per_gpu: consecutive images that are a batch of one GPU of the reference. Its largest
            number of boxes determines the number of groups.
    """
    largest = counts.reshape(-1, per_gpu).max(axis=1).repeat(per_gpu)[:, None]
    size = 2 * jnp.maximum(largest, 1)
    groups = jnp.maximum(settings.queries // size, 1)
    slot = jnp.arange(slots)[None]
    within = slot % size
    used = (slot < size * groups) & (largest > 0)
    box = within % jnp.maximum(largest, 1)
    return DenoisingLayout(
        box=box,
        positive=within < largest,
        used=used,
        real=used & (box < counts[:, None]),
        group=slot // size,
        groups=groups[:, 0],
    )


def denoising_queries(
    key: jax.Array,
    labels: jax.Array,
    boxes: jax.Array,
    where: DenoisingLayout,
    settings: DenoisingSettings,
    *,
    num_classes: int,
    queries: int,
) -> Denoising:
    """Draws the noise.

    Args:
        key: random key.
        labels: classes of the ground truth, int32 [N, M].
        boxes: its center boxes, [N, M, 4].
        where: from `layout`.
        settings: how much noise.
        num_classes: number of classes.
        queries: number of the other queries, Q.
    """
    keys = jax.random.split(key, 4)
    shape = where.box.shape
    labels = jnp.take_along_axis(labels, where.box, axis=1)
    redrawn = jax.random.bernoulli(keys[0], settings.label_noise, shape)
    labels = jnp.where(redrawn, jax.random.randint(keys[1], shape, 0, num_classes), labels)

    boxes = jnp.take_along_axis(boxes, where.box[..., None], axis=1)
    share = jax.random.uniform(keys[2], (*shape, 4), boxes.dtype)
    share = jnp.where(where.positive[..., None], share, share + 1)
    sign = 2 * jax.random.bernoulli(keys[3], 0.5, (*shape, 4)).astype(boxes.dtype) - 1
    references = noisy_references(boxes, sign * share * settings.box_noise)
    return Denoising(
        labels=jnp.where(where.real, labels, -1).astype(jnp.int32),
        references=jnp.where(where.real[..., None], references, 0),
        blocked=blocked(where, queries),
    )


def noisy_references(boxes: jax.Array, moves: jax.Array) -> jax.Array:
    """Logits of center boxes whose corners are moved.

    Args:
        boxes: center boxes, [..., 4].
        moves: of the corners, as shares of half the width and height, [..., 4].
    """
    half = 0.5 * jnp.concatenate([boxes[..., 2:], boxes[..., 2:]], axis=-1)
    corners = jnp.clip(to_corners(boxes) + moves * half, 0, 1)
    return logit(to_centers(corners))


def blocked(where: DenoisingLayout, queries: int) -> jax.Array:
    """True where a query (second axis) does not see another: [N, D + Q, D + Q].

    The other queries do not see denoising ones, and groups do not see each other. Unused slots are
    seen by themselves only.
    """
    n, slots = where.used.shape
    same_group = where.group[:, :, None] == where.group[:, None, :]
    both = where.used[:, :, None] & where.used[:, None, :]
    sees = (same_group & both) | jnp.eye(slots, dtype=bool)
    result = jnp.zeros((n, slots + queries, slots + queries), bool)
    result = result.at[:, :slots, :slots].set(~sees)
    return result.at[:, slots:, :slots].set(True)
