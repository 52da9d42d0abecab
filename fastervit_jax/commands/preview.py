"""Draws what the network really gets.

    fastervit preview --config=NAME --output=preview.png

The upper part shows every RandAugment operation of the config at its magnitude, on one image of the
training set; the lower part finished training images, as they leave the device augmentation, with
their soft labels.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from fastervit_jax.augmentation.host import CropBox, TrainTransform, crop_and_resize
from fastervit_jax.augmentation.operations import GEOMETRIC, Operation, apply_operation
from fastervit_jax.augmentation.rand_augment import (
    RandAugment,
    operation_argument,
    parse_rand_augment,
)
from fastervit_jax.commands.flags import define_config_flag
from fastervit_jax.data.images import decode_rgb, height_and_width
from fastervit_jax.data.loader import train_batches
from fastervit_jax.data.sources import Source, open_source
from fastervit_jax.training import classification

_GROUP_SIZE, _GROUPS = 8, 4  # images that are mixed together make a row
_OPERATION_COLUMNS = 9


class Picture(NamedTuple):
    """One picture of a grid: RGB uint8 `[H, W, 3]`, and what is written above it."""

    pixels: np.ndarray
    title: str


class Grid(NamedTuple):
    """A part of the preview."""

    title: str
    columns: int
    pictures: list[Picture]


def operation_pictures(image: Image.Image, augment: RandAugment) -> list[Picture]:
    """The image itself, then every operation at the mean magnitude, with both signs where it has.

    Args:
        image: an RGB image as the crop leaves it.
        augment: which operations, and at which magnitude.
    """
    pictures = [Picture(np.asarray(image), "no operation")]
    magnitude = min(float(augment.magnitude), augment.magnitude_max)
    for name in augment.operations:
        arguments = [
            operation_argument(name, magnitude, increasing=augment.increasing, negative=negative)
            for negative in (False, True)
        ]
        for argument in dict.fromkeys(arguments):
            resampling = augment.resamplings[-1] if name in GEOMETRIC else None
            pixels = np.asarray(apply_operation(image, Operation(name, argument, resampling)))
            title = name if argument is None else f"{name} {argument:.3g}"
            pictures.append(Picture(pixels, title))
    return pictures


def finished_pictures(
    source: Source, transform: TrainTransform, settings: Any, *, seed: int
) -> list[Picture]:
    """Training images of step 0 after the device's part, in groups that are mixed together.

    Args:
        source: the training set.
        transform: the host's part.
        settings: the device's part, `augmentation.device.AugmentationSettings`; its groups are made
            as small as a row of the grid.
        seed: of the order and the distortions.

    Raises:
        ValueError: the set holds fewer images than the grid.
    """
    import jax

    from fastervit_jax.augmentation.device import augment

    batch_size = _GROUPS * _GROUP_SIZE
    batch = next(train_batches(source, transform, batch_size=batch_size, seed=seed, num_steps=1))
    settings = dataclasses.replace(settings, group_size=_GROUP_SIZE)
    finish = jax.jit(augment, static_argnames="settings")
    images, soft_labels = finish(
        jax.random.key(seed), batch["image"], batch["label"], settings=settings
    )
    restored = np.asarray(images, np.float32) * np.array(settings.std) + np.array(settings.mean)
    pixels = np.clip(np.rint(255 * restored), 0, 255).astype(np.uint8)
    return [
        Picture(image, _soft_label(np.asarray(label), source.class_names))
        for image, label in zip(pixels, soft_labels, strict=True)
    ]


def _soft_label(soft_label: np.ndarray, class_names: Sequence[str]) -> str:
    """The classes that hold more than what smoothing gives to every class."""
    first, *second = np.argsort(-soft_label)[:2]
    shown = [first] + [index for index in second if soft_label[index] > soft_label.min() + 1e-6]
    return "\n".join(f"{soft_label[index]:.2f} {class_names[index][:16]}" for index in shown)


def draw_preview(config: ConfigDict, path: epath.PathLike) -> None:
    """Writes the preview of a config as a PNG.

    Raises:
        ValueError: the config, or the training set it names, cannot be used.
    """
    if config.task != "classification":
        raise ValueError(f"Invalid config.task={config.task}: preview draws classification alone.")
    source = open_source(config.data.train, data_dir=config.data.data_dir)
    transform = classification.train_transform(config)
    grids = []
    if config.rand_augment:
        example = source[0]
        image = _cover(decode_rgb(example.encoded), *height_and_width(transform.resolution))
        pictures = operation_pictures(image, parse_rand_augment(config.rand_augment))
        title = f"{config.rand_augment}: every operation at its magnitude, on {example.key}"
        grids.append(Grid(title, _OPERATION_COLUMNS, pictures))
    settings = classification.augmentation_settings(config, mixing_group=_GROUP_SIZE)
    pictures = finished_pictures(source, transform, settings, seed=config.seed)
    title = f"Training images and their labels, mixed in rows of {_GROUP_SIZE}"
    grids.append(Grid(title, _GROUP_SIZE, pictures))
    _draw(grids, path)


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred part of the image that has the wanted aspect, at the wanted size."""
    scale = min(image.height / height, image.width / width)
    part_height, part_width = max(1, int(height * scale)), max(1, int(width * scale))
    top, left = (image.height - part_height) // 2, (image.width - part_width) // 2
    box = CropBox(top, left, part_height, part_width)
    return crop_and_resize(image, box, (height, width), Image.Resampling.BICUBIC)


def _draw(grids: list[Grid], path: epath.PathLike) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [math.ceil(len(grid.pictures) / grid.columns) for grid in grids]
    figure = plt.figure(figsize=(14, 2.0 * sum(rows)), constrained_layout=True)
    subfigures = figure.subfigures(len(grids), 1, height_ratios=rows, squeeze=False)[:, 0]
    for grid, count, subfigure in zip(grids, rows, subfigures, strict=True):
        subfigure.suptitle(grid.title, fontsize=10)
        axes = subfigure.subplots(count, grid.columns, squeeze=False).flat
        for axis, picture in itertools.zip_longest(axes, grid.pictures):
            axis.set_axis_off()
            if picture is not None:
                axis.imshow(picture.pixels)
                axis.set_title(picture.title, fontsize=7)
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit preview`, and returns what runs it."""
    config = define_config_flag()
    output = flags.DEFINE_string("output", "preview.png", "PNG file to write.")

    def main(_) -> None:
        draw_preview(config.value, output.value)
        print(output.value)

    return main
