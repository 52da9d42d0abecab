"""The recipe's augmentation on the device: mixup or CutMix, normalisation, random erasing.

The host delivers decoded, cropped and distorted images as uint8; the rest happens here, inside the
jitted step, and follows timm 0.9.16 as the official script drives it (``FastCollateMixup`` in batch
mode, then ``PrefetchLoader``'s normalisation and ``RandomErasing``). Flip and RandAugment may move
here too, to spare the host.

Every random step comes in two parts, the draw and its application, so that the application can be
compared with timm's on timm's own draws. A draw depends on the key and on the image's, or the
group's, index in the global batch alone, never on how many devices share the batch.

All functions are pure and work on plain arrays: in somebody else's loop, `augment` inside their
jitted step is all there is to call.
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
    """What `augment` does to a batch; the defaults are the official ImageNet-1K recipe.

    Attributes:
      num_classes: number of classes of the soft labels.
      group_size: images that are mixed together with one lambda, consecutive in the batch. The
        recipe's is 128, the batch of one GPU; where a device holds fewer, all it holds. Fixed for
        a run, since the draws depend on it.
      mixup_alpha: Beta parameter of mixup's lambda; 0 for no mixup.
      cutmix_alpha: Beta parameter of CutMix's lambda; 0 for no CutMix.
      switch_probability: probability of CutMix where both are on.
      mixing_probability: probability that a group is mixed at all.
      smoothing: label smoothing in the soft labels.
      erasing_probability: probability that a rectangle of an image is erased.
      erasing_area: smallest and largest target area of it, as shares of the image.
      erasing_aspect: smallest and largest height / width of it.
      mean: mean of each channel for images from 0 to 1.
      std: standard deviation of each channel for images from 0 to 1.
      dtype: dtype of the augmented images.
      flip_probability: probability that an image is mirrored here; 0 where the host does it.
      rand_augment: RandAugment to apply here; None where the host does it, or nobody.
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
    """Mixes, normalises and erases a training batch, in the recipe's order.

    Before that it flips and distorts the images, where the settings say so.

    Args:
      key: random key of this step.
      images: uint8 ``[N, H, W, 3]``.
      labels: integer classes, ``[N]``.
      settings: what to do.
      mesh: the mesh that the batch is sharded over, if any. Every device then works on its own
        images without any communication, and the result is the same as without a mesh.
      batch_axes: the mesh axes that share out the batch, in order.

    Returns:
      Images ``[N, H, W, 3]`` of `settings.dtype` and soft labels ``[N, K]``, float32.

    Raises:
      ValueError: for images or labels of a wrong dtype or shape, settings out of range, or a batch
        that does not make whole groups on every device.
    """
    if mesh is None:
        return _augment_from(0, key, images, labels, settings)

    unknown = set(batch_axes) - set(mesh.axis_names)
    if unknown:
        raise ValueError(
            f"The mesh has the axes {mesh.axis_names}; {sorted(unknown)} of batch_axes are not "
            "among them."
        )
    devices = math.prod(mesh.shape[axis] for axis in batch_axes)
    check_divisible(images.shape[0], devices, "be shared out over {} devices")
    on_device = images.shape[0] // devices
    if settings.group_size < 1 or on_device % settings.group_size:
        raise ValueError(
            f"Mixing stays inside a device: the {on_device} images that each holds must make whole "
            f"groups, and the group_size is {settings.group_size}."
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
