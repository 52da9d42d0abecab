"""Augmentation on the device: mixup or CutMix, normalization, random erasing.

The host decodes, crops and distorts the images and sends them as uint8. The functions here run
inside the jitted step. They follow timm 0.9.16 as the official script uses it: `FastCollateMixup`
in batch mode, then the normalization and `RandomErasing` of `PrefetchLoader`. Flip and RandAugment
can also run here, to save CPU time on the host.

Every random step has two functions. One draws the random numbers, the other one applies them. Tests
can then apply timm's draws and compare the pixels. A draw depends only on the key and on the index
of the image (or group) in the global batch. It does not depend on the number of devices.

All functions are pure and take plain arrays. In your own training loop, call `augment` inside the
jitted step.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fastervit_jax.augmentation.device_rand_augment import random_augment, random_flip
from fastervit_jax.augmentation.erasing import random_erasing
from fastervit_jax.augmentation.mixing import mix
from fastervit_jax.augmentation.rand_augment import RandAugment
from fastervit_jax.augmentation.random_draws import check_divisible
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalize


@dataclasses.dataclass(frozen=True)
class AugmentationSettings:
    """Settings of `augment`. The defaults are those of the official ImageNet-1K recipe.

    Attributes:
        num_classes: number of classes of the soft labels.
        group_size: number of consecutive images that are mixed with one lambda. The recipe uses
            128, the batch of one GPU. If a device has fewer images, use that number. Keep it fixed
            during a run, because the draws depend on it.
        mixup_alpha: parameter of the Beta distribution of mixup's lambda; 0 disables mixup.
        cutmix_alpha: parameter of the Beta distribution of CutMix's lambda; 0 disables CutMix.
        switch_probability: probability of CutMix if both are enabled.
        mixing_probability: probability that a group is mixed.
        smoothing: label smoothing in the soft labels.
        erasing_probability: probability that a rectangle of an image is erased.
        erasing_area: smallest and largest area of the rectangle, divided by the image's area.
        erasing_aspect: smallest and largest height / width of the rectangle.
        mean: mean of each channel, for values from 0 to 1.
        std: standard deviation of each channel, for values from 0 to 1.
        dtype: dtype of the augmented images.
        flip_probability: probability of a horizontal flip on the device; 0 if the host flips.
        rand_augment: RandAugment to apply on the device; None if the host applies it, or if there
            is no RandAugment.
    """

    num_classes: int
    group_size: int = 128
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5
    mixing_probability: float = 1.0
    smoothing: float = 0.1
    erasing_probability: float = 0.25
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    dtype: jax.typing.DTypeLike = jnp.float32
    flip_probability: float = 0.0
    rand_augment: RandAugment | None = None


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    settings: AugmentationSettings,
    *,
    mesh: Mesh | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> tuple[jax.Array, jax.Array]:
    """Augments a training batch in the recipe's order.

    The order is: flip and RandAugment if enabled, mixing, normalization, random erasing.

    Args:
        key: random key of this step.
        images: uint8 `[N, H, W, 3]`.
        labels: integer classes, `[N]`.
        settings: the settings of the augmentation.
        mesh: the mesh over which the batch is sharded, or None. With a mesh, every device augments
            its own images without communication. The result is the same as without a mesh.
        batch_axes: the mesh axes over which the batch is sharded, in order.

    Returns:
        Images `[N, H, W, 3]` of `settings.dtype` and soft labels `[N, K]`, float32.

    Raises:
        ValueError: images or labels have a wrong dtype or shape, a setting is out of range, or the
            images of a device cannot be divided into whole groups.
    """
    if mesh is None:
        return _augment_from(0, key, images, labels, settings)

    unknown = set(batch_axes) - set(mesh.axis_names)
    if unknown:
        raise ValueError(
            f"Invalid batch_axes: expected axes of the mesh, {mesh.axis_names}, got "
            f"{sorted(unknown)}."
        )
    devices = math.prod(mesh.shape[axis] for axis in batch_axes)
    check_divisible(images.shape[0], devices, "the {} devices")
    on_device = images.shape[0] // devices
    if settings.group_size < 1 or on_device % settings.group_size:
        raise ValueError(
            f"Invalid group_size={settings.group_size}: must divide the {on_device} images of each "
            "device, because images are mixed within a device."
        )

    def on_each_device(key, images, labels):
        first_image = jax.lax.axis_index(tuple(batch_axes)) * images.shape[0]
        return _augment_from(first_image, key, images, labels, settings)

    batch = PartitionSpec(tuple(batch_axes))
    return jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), batch, batch),
        out_specs=(batch, batch),
        check_vma=False,
    )(key, images, labels)


def _augment_from(
    first_image: int | jax.Array,
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    settings: AugmentationSettings,
) -> tuple[jax.Array, jax.Array]:
    flip_key, operation_key, mixing_key, erasing_key = jax.random.split(key, 4)
    images = random_flip(flip_key, images, settings.flip_probability, first_image=first_image)
    if settings.rand_augment is not None:
        images = random_augment(
            operation_key, images, settings.rand_augment, first_image=first_image
        )
    images, soft_labels = mix(
        mixing_key,
        images,
        labels,
        num_classes=settings.num_classes,
        mixup_alpha=settings.mixup_alpha,
        cutmix_alpha=settings.cutmix_alpha,
        switch_probability=settings.switch_probability,
        probability=settings.mixing_probability,
        smoothing=settings.smoothing,
        group_size=settings.group_size,
        first_image=first_image,
    )
    images = normalize(images, settings.mean, settings.std, settings.dtype)
    images = random_erasing(
        erasing_key,
        images,
        probability=settings.erasing_probability,
        area=settings.erasing_area,
        aspect=settings.erasing_aspect,
        first_image=first_image,
    )
    return images, soft_labels
