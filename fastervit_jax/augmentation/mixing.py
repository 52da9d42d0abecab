"""Mixup and CutMix of groups of images on the device, with soft labels.

Follows timm 0.9.16's `FastCollateMixup` in batch mode, the collate function of the official script.
The methods are [mixup](https://arxiv.org/abs/1710.09412) and
[CutMix](https://arxiv.org/abs/1905.04899).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from fastervit_jax.augmentation.random_draws import (
    check_divisible,
    check_probability,
    index_below,
    inside_box,
    uniform,
)


class MixingDraw(NamedTuple):
    """The random draws of `G` groups.

    Attributes:
        lam: float32 `[G]`, weight of an image's own label. The label of the partner has the weight
            1 - lam. Mixup uses the same weights for the pixels. In CutMix, lam is the area outside
            the box, divided by the image's area.
        use_cutmix: bool `[G]`, True for CutMix and False for mixup.
        boxes: int32 `[G, 4]`, the CutMix box: top, bottom, left, right in pixels. Bottom and right
            are exclusive.
    """

    lam: jax.Array
    use_cutmix: jax.Array
    boxes: jax.Array


def mix(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_probability: float = 0.5,
    probability: float = 1.0,
    smoothing: float = 0.1,
    group_size: int = 128,
    first_image: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
    """Applies mixup or CutMix to every group of consecutive images and returns soft labels.

    The partner of image i of a group of S images is image S - 1 - i. Each group is mixed as timm's
    `FastCollateMixup` mixes a batch in batch mode.

    Args:
        key: random key.
        images: uint8 `[N, H, W, C]`.
        labels: integer classes, `[N]`.
        num_classes: number of classes `K`.
        mixup_alpha: parameter of the Beta distribution of mixup's lambda; 0 disables mixup.
        cutmix_alpha: parameter of the Beta distribution of CutMix's lambda; 0 disables CutMix.
        switch_probability: probability of CutMix if both are enabled.
        probability: probability that a group is mixed.
        smoothing: label smoothing.
        group_size: number of images in a group. It must divide `N`.
        first_image: index of the first image in the global batch, a multiple of `group_size`. The
            draws depend on it.

    Returns:
        The mixed images, uint8 `[N, H, W, C]`, and soft labels, float32 `[N, K]`.

    Raises:
        ValueError: images or labels have a wrong dtype or shape, a setting is out of range, or
            `group_size` does not divide the batch.
    """
    _check_images_and_labels(images, labels)
    if group_size < 1:
        raise ValueError(f"Invalid group_size: expected at least 1, got {group_size}.")
    check_divisible(images.shape[0], group_size, "group_size={}")
    if isinstance(first_image, int) and first_image % group_size:
        raise ValueError(
            f"Invalid first_image: expected a multiple of group_size={group_size}, got "
            f"{first_image}."
        )
    first_group = first_image // group_size
    draw = draw_mixing(
        key,
        first_group + jnp.arange(images.shape[0] // group_size),
        image_size=images.shape[1:3],
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        switch_probability=switch_probability,
        probability=probability,
    )
    return apply_mixing(images, labels, draw, num_classes=num_classes, smoothing=smoothing)


def draw_mixing(
    key: jax.Array,
    group_indices: jax.Array,
    *,
    image_size: Sequence[int],
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_probability: float = 0.5,
    probability: float = 1.0,
) -> MixingDraw:
    """Draws how to mix groups, as timm's `Mixup._params_per_batch` and `rand_bbox` do.

    Args:
        key: random key.
        group_indices: indices of the groups in the global batch, int `[G]`.
        image_size: height and width, in pixels.
        mixup_alpha: as in `mix`.
        cutmix_alpha: as in `mix`.
        switch_probability: as in `mix`.
        probability: as in `mix`.

    Returns:
        The draws of the `G` groups.

    Raises:
        ValueError: a setting is out of range.
    """
    chex.assert_rank(group_indices, 1)
    _check_alpha("mixup_alpha", mixup_alpha)
    _check_alpha("cutmix_alpha", cutmix_alpha)
    check_probability("switch_probability", switch_probability)
    check_probability("probability", probability)
    groups = group_indices.shape[0]
    if probability == 0 or (mixup_alpha == 0 and cutmix_alpha == 0):
        return MixingDraw(
            lam=jnp.ones(groups, jnp.float32),
            use_cutmix=jnp.zeros(groups, bool),
            boxes=jnp.zeros((groups, 4), jnp.int32),
        )
    if mixup_alpha == 0:
        switch_probability = 1.0
    elif cutmix_alpha == 0:
        switch_probability = 0.0
    height, width = image_size

    def draw_one(group_index: jax.Array) -> MixingDraw:
        number_key, lam_key = jax.random.split(jax.random.fold_in(key, group_index))
        mixing, switching, y, x = uniform(number_key, (4,))
        is_mixed = mixing < probability
        use_cutmix = is_mixed & (switching < switch_probability)
        # A method with alpha 0 is never chosen. The 1.0 only replaces an invalid parameter.
        alpha = jnp.where(use_cutmix, cutmix_alpha or 1.0, mixup_alpha or 1.0)
        lam = jax.random.beta(lam_key, alpha, alpha, dtype=jnp.float32)
        lam = jnp.where(is_mixed, lam, 1.0)

        box = _cutmix_box(lam, index_below(height, y), index_below(width, x), height, width)
        top, bottom, left, right = box
        share_outside = 1.0 - ((bottom - top) * (right - left)) / (height * width)
        lam = jnp.where(use_cutmix, share_outside, lam).astype(jnp.float32)
        return MixingDraw(lam, use_cutmix, jnp.stack(box))

    return jax.vmap(draw_one)(group_indices)


def _cutmix_box(lam, center_y, center_x, height: int, width: int) -> tuple[jax.Array, ...]:
    """Returns a box with about 1 - lam of the image's area, clipped at the image's border."""
    ratio = jnp.sqrt(1.0 - lam)
    half_height = jnp.floor(height * ratio).astype(jnp.int32) // 2
    half_width = jnp.floor(width * ratio).astype(jnp.int32) // 2
    return (
        jnp.clip(center_y - half_height, 0, height),
        jnp.clip(center_y + half_height, 0, height),
        jnp.clip(center_x - half_width, 0, width),
        jnp.clip(center_x + half_width, 0, width),
    )


def apply_mixing(
    images: jax.Array,
    labels: jax.Array,
    draw: MixingDraw,
    *,
    num_classes: int,
    smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes images and labels according to `draw`. With timm's draws, the pixels equal timm's.

    Args:
        images: uint8 `[N, H, W, C]`.
        labels: integer classes, `[N]`.
        draw: the draws of `G` groups. Each group has `N / G` consecutive images.
        num_classes: number of classes `K`.
        smoothing: label smoothing.

    Returns:
        The mixed images, uint8 `[N, H, W, C]`, and soft labels, float32 `[N, K]`.

    Raises:
        ValueError: images or labels have a wrong dtype or shape, or `G` does not divide `N`.
    """
    _check_images_and_labels(images, labels)
    groups = draw.lam.shape[0]
    chex.assert_shape(draw.use_cutmix, (groups,))
    chex.assert_shape(draw.boxes, (groups, 4))
    check_divisible(images.shape[0], groups, "the {} groups")
    mixed = jax.vmap(_mix_group)(images.reshape(groups, -1, *images.shape[1:]), draw)
    partners = labels.reshape(groups, -1)[:, ::-1].reshape(labels.shape)
    lam = jnp.repeat(draw.lam, len(labels) // groups)[:, None]
    own_part = smooth_one_hot(labels, num_classes, smoothing) * lam
    partner_part = smooth_one_hot(partners, num_classes, smoothing) * (1.0 - lam)
    return mixed.reshape(images.shape), own_part + partner_part


def _mix_group(images: jax.Array, draw: MixingDraw) -> jax.Array:
    """Mixes the images `[S, H, W, C]` of one group."""
    partners = images[::-1]
    own_part = images.astype(jnp.float32) * draw.lam
    partner_part = partners.astype(jnp.float32) * (1.0 - draw.lam)
    # Both parts are non-negative. The absolute values prevent compilers from fusing product and sum
    # into one operation with one rounding, which would change about one pixel in a million.
    blended = jnp.rint(jnp.abs(own_part) + jnp.abs(partner_part)).astype(jnp.uint8)

    inside = inside_box(draw.boxes, images.shape[1], images.shape[2])
    pasted = jnp.where(inside[..., None], partners, images)
    return jnp.where(draw.use_cutmix, pasted, blended)


def _check_images_and_labels(images: jax.Array, labels: jax.Array) -> None:
    if images.ndim != 4 or images.dtype != jnp.uint8:
        raise ValueError(
            "Invalid images to mix: expected uint8 of shape [N, H, W, C], got "
            f"{images.dtype} of shape {images.shape}."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"Invalid labels: expected shape {images.shape[:1]}, one label per image, got "
            f"{labels.shape}."
        )


def _check_alpha(name: str, alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"Invalid {name}: expected a finite number of at least 0, got {alpha}.")


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Returns one-hot targets with label smoothing, as timm's `mixup_target` does.

    Every class gets `smoothing / num_classes`. The class of the label gets `1 - smoothing` more.

    Args:
        labels: integer classes, shape `[N]`. Compiled code cannot raise for a label outside
            `0 .. num_classes - 1`. Its row is NaN instead, so that the loss becomes NaN.
        num_classes: number of classes `K`.
        smoothing: total weight that is spread over all classes, 0 <= smoothing < 1.

    Returns:
        The targets, float32 `[N, K]`. Rows sum to 1.

    Raises:
        ValueError: `labels` is not an integer vector, or `smoothing` or `num_classes` is out of
            range.
    """
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "Invalid labels: expected integers of shape [N], one class per image, got "
            f"{labels.dtype} of shape {labels.shape}."
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"Invalid smoothing: expected a number in [0, 1), got {smoothing}.")
    if num_classes < 1:
        raise ValueError(f"Invalid num_classes: expected at least 1, got {num_classes}.")
    off_value = smoothing / num_classes
    on_value = 1.0 - smoothing + off_value
    targets = jnp.where(jax.nn.one_hot(labels, num_classes, dtype=bool), on_value, off_value)
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known[:, None], targets, jnp.nan).astype(jnp.float32)
