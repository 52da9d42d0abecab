"""Batches of images of different sizes, padded to one of a few sizes (buckets).

A program is compiled for each bucket that occurs, and for no other size. What happens to an image
is drawn from its size in the JSON file, so every host knows the bucket of a step without reading
the images of the others. As elsewhere, a batch is a function of (seed, step).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from fastervit_jax.augmentation.detection import (
    Plan,
    ResizeSettings,
    apply_to_boxes,
    apply_to_image,
    draw_plan,
    resized,
    shares,
)
from fastervit_jax.data.images import DamagedImageError, Decoding, decode_rgb
from fastervit_jax.data.loader import Batch, Damaged, DamageReport, TrainLoader
from fastervit_jax.data.order import (
    check_seed,
    example_index,
    example_rng,
    replacement_index,
    steps_per_epoch,
)
from fastervit_jax.data.sources.coco import Annotated, CocoSource
from fastervit_jax.data.workers import StepIterator, new_array

Size = tuple[int, int]
"""(height, width) in pixels."""

_MAX_REPLACEMENTS = 100


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How batches are made.

    Attributes:
        buckets: sizes of padded batches.
        max_boxes: boxes of an image that a batch has room for.
        resize: how training images are resized and cropped.
        eval_short_side: length of the short side in evaluation.
        window: training batches whose images are sorted by aspect together, so that images of
            similar aspect meet; 1 sorts nothing.
    """

    buckets: tuple[Size, ...]
    max_boxes: int
    resize: ResizeSettings
    eval_short_side: int
    window: int = 1

    def __post_init__(self):
        if not self.buckets or any(len(each) != 2 or min(each) < 1 for each in self.buckets):
            raise ValueError(
                f"Invalid buckets={self.buckets}: expected sizes such as ((800, 1333), "
                "(1333, 800), (1333, 1333))."
            )

    def bucket(self, sizes: list[Size]) -> Size:
        """The smallest bucket that holds images of these sizes.

        Raises:
            ValueError: there is none.
        """
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        fitting = [each for each in self.buckets if each[0] >= height and each[1] >= width]
        if not fitting:
            raise ValueError(
                f"Invalid config.data.buckets={self.buckets}: none holds images of up to "
                f"{height}×{width}. Add ({height}, {width}) or a larger size."
            )
        return min(fitting, key=lambda size: size[0] * size[1])

    def eval_size(self, size: Size) -> Size:
        """The size of an image in evaluation."""
        return resized(size, self.eval_short_side, self.resize.long_side)


class _Planned(NamedTuple):
    """A place of a training batch: which image, and what happens to it."""

    position: int
    plan: Plan


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """Maps a step to this host's part of the training batch, and its damaged images."""

    source: CocoSource
    settings: BatchSettings
    batch_size: int
    seed: int
    host_index: int
    host_count: int
    shared: bool

    def __call__(self, step: int) -> tuple[Batch, list[Damaged]]:
        epoch, into_epoch = divmod(step, steps_per_epoch(len(self.source), self.batch_size))
        window, into_window = divmod(into_epoch, self.settings.window)
        planned = self._window(epoch, window)[into_window]
        bucket = self.settings.bucket([each.plan.size for each in planned])
        local = self.batch_size // self.host_count
        own = planned[self.host_index * local : (self.host_index + 1) * local]

        batch = _empty_batch(local, bucket, self.settings.max_boxes, shared=self.shared)
        batch["position"] = np.asarray([each.position for each in own], np.int32)
        damaged: list[Damaged] = []
        for row, each in enumerate(own):
            self._fill(batch, row, epoch, each, bucket, damaged)
        return batch, damaged

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _window(self, epoch: int, window: int) -> list[list[_Planned]]:
        """The batches of a window: similar aspects together, in random order."""
        steps = steps_per_epoch(len(self.source), self.batch_size)
        first = window * self.settings.window
        count = min(self.settings.window, steps - first)
        places = [
            self._plan(epoch, position)
            for position in range(first * self.batch_size, (first + count) * self.batch_size)
        ]
        if self.settings.window > 1:
            places.sort(key=lambda place: place.plan.size[0] / place.plan.size[1])
        batches = [
            places[start : start + self.batch_size]
            for start in range(0, len(places), self.batch_size)
        ]
        order = np.random.default_rng([self.seed, epoch, window, 1]).permutation(count)
        return [batches[each] for each in order] if self.settings.window > 1 else batches

    def _plan(self, epoch: int, position: int) -> _Planned:
        place = {"seed": self.seed, "epoch": epoch, "position": position}
        height, width = self.source.sizes[example_index(len(self.source), **place)]
        return _Planned(
            position, draw_plan((height, width), self.settings.resize, example_rng(**place))
        )

    def _fill(self, batch, row, epoch, planned: _Planned, bucket: Size, damaged) -> None:
        """Writes an image to a row; a damaged one is replaced by another."""
        place = {"seed": self.seed, "epoch": epoch, "position": planned.position}
        index, plan = example_index(len(self.source), **place), planned.plan
        for attempt in range(1, _MAX_REPLACEMENTS + 1):
            example = self.source[index]
            try:
                return _write(batch, row, example, plan, self.source.decoding)
            except DamagedImageError as error:
                damaged.append(Damaged(example.key, str(error)))
            index = replacement_index(len(self.source), attempt=attempt, **place)
            height, width = self.source.sizes[index]
            plan = draw_plan((height, width), self.settings.resize, example_rng(**place))
            plan = plan.fitted(bucket)
        raise DamagedImageError(
            f"{_MAX_REPLACEMENTS} images in a row could not be decoded. The last one was "
            f"{damaged[-1].key} ({damaged[-1].reason}). Check that the data set contains images."
        )


def train_batches(
    source: CocoSource,
    settings: BatchSettings,
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
    max_damaged_share: float = 0.001,
) -> TrainLoader:
    """Returns this host's part of the training batches for steps start_step … num_steps − 1.

    Arguments are those of `fastervit_jax.data.example_batches`.

    Returns:
        An iterator of `{"image": uint8 [n, H, W, 3], "size": int32 [n, 2], "labels": int32 [n, M],
        "boxes": float32 [n, M, 4], "count": int32 [n], "position": int32 [n]}`: images with zeros
        on the right and below, their (height, width), center boxes as shares of the image, how many
        boxes there are, and the position of the image in its epoch.

    Raises:
        ValueError: an argument is invalid, or an image has more than `max_boxes` boxes.
    """
    check_seed(seed)
    check_boxes(source, settings.max_boxes)
    make = TrainBatch(
        source=source,
        settings=settings,
        batch_size=batch_size,
        seed=seed,
        host_index=host_index,
        host_count=host_count,
        shared=num_workers > 0,
    )
    drawn = steps_per_epoch(len(source), batch_size) * (batch_size // host_count)
    damage = DamageReport(max_damaged_share, drawn)
    return TrainLoader(StepIterator(make, start_step, num_steps, num_workers), damage)


def check_boxes(source: CocoSource, max_boxes: int) -> None:
    """Raises ValueError where an image has more boxes than a batch has room for."""
    most, key = source.most_boxes
    if most > max_boxes:
        raise ValueError(
            f"Invalid config.data.max_boxes={max_boxes}: {key} of {source.annotations} has {most} "
            f"boxes. Set the key to at least {most}, and config.model.queries to at least that."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvalBatch:
    """Maps a number to this host's part of an evaluation batch: each image once, by bucket."""

    source: Any
    settings: BatchSettings
    batch_size: int
    host_index: int
    host_count: int
    shared: bool

    @functools.cached_property
    def batches(self) -> list[tuple[Size, list[int]]]:
        """Bucket and images of each global batch."""
        by_bucket: dict[Size, list[int]] = {}
        for index, (height, width) in enumerate(self.source.sizes):
            size = self.settings.eval_size((int(height), int(width)))
            by_bucket.setdefault(self.settings.bucket([size]), []).append(index)
        return [
            (bucket, images[start : start + self.batch_size])
            for bucket, images in sorted(by_bucket.items())
            for start in range(0, len(images), self.batch_size)
        ]

    def __call__(self, number: int) -> Batch:
        bucket, images = self.batches[number]
        local = self.batch_size // self.host_count
        own = images[self.host_index * local : (self.host_index + 1) * local]
        batch = _empty_batch(local, bucket, 0, shared=self.shared)
        batch["original"] = np.ones((local, 2), np.int32)
        batch["index"] = np.full(local, -1, np.int32)
        for row, index in enumerate(own):
            example = self.source[index]
            try:
                plan = Plan(False, None, None, self.settings.eval_size(example.size))
                example = example._replace(boxes=example.boxes[:0])
                _write(batch, row, example, plan, self.source.decoding)
            except DamagedImageError as error:
                raise DamagedImageError(
                    f"Evaluation stopped: {example.key} cannot be used ({error}). Repair or remove "
                    "the file."
                ) from error
            batch["original"][row] = example.size
            batch["index"][row] = index
        return {name: batch[name] for name in ("image", "size", "original", "index")}


def eval_batches(
    source: Any,
    settings: BatchSettings,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> StepIterator:
    """Returns this host's part of all images, sorted by bucket.

    Yields:
        `{"image": uint8 [n, H, W, 3], "size": int32 [n, 2], "original": int32 [n, 2], "index":
        int32 [n]}`; `original` is the (height, width) of the stored image. Rows of index −1 are
        padding.
    """
    make = EvalBatch(
        source=source,
        settings=settings,
        batch_size=batch_size,
        host_index=host_index,
        host_count=host_count,
        shared=num_workers > 0,
    )
    return StepIterator(make, 0, len(make.batches), num_workers)


def _empty_batch(rows: int, bucket: Size, max_boxes: int, *, shared: bool) -> Batch:
    images = new_array((rows, *bucket, 3), np.uint8, shared=shared)
    images[:] = 0
    return {
        "image": images,
        "size": np.ones((rows, 2), np.int32),
        "labels": np.zeros((rows, max_boxes), np.int32),
        "boxes": np.zeros((rows, max_boxes, 4), np.float32),
        "count": np.zeros(rows, np.int32),
    }


def _write(batch: Batch, row: int, example: Annotated, plan: Plan, decoding: Decoding) -> None:
    """Writes an image and its boxes to a row."""
    image = decode_rgb(example.encoded, decoding)
    if image.size != (example.size[1], example.size[0]):
        raise DamagedImageError(
            f"the image has {image.height}×{image.width} pixels, but the JSON file says "
            f"{example.size[0]}×{example.size[1]}"
        )
    height, width = plan.size
    batch["image"][row] = 0
    batch["image"][row, :height, :width] = np.asarray(apply_to_image(image, plan))
    batch["size"][row] = plan.size
    boxes, kept = apply_to_boxes(example.boxes, example.size, plan)
    count = int(kept.sum())
    batch["labels"][row, :count] = example.labels[kept] if count else 0
    batch["boxes"][row, :count] = shares(boxes[kept], plan.size)
    batch["count"][row] = count
