"""Batches in order: the loader.

A batch is a function of its step number and the seed (`order.py`), so the loader has no state but
that number: it is resumed by making it anew with another `start_step`, at no cost, whatever the
number of workers and hosts then is.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from absl import logging

from fastervit_jax.data.images import DamagedImageError, EvalTransform, height_and_width
from fastervit_jax.data.order import (
    check_seed,
    example_index,
    example_rng,
    replacement_index,
    steps_per_epoch,
)
from fastervit_jax.data.sources import Example, Source
from fastervit_jax.data.workers import StepIterator, discard, new_array

Batch = dict[str, np.ndarray]
HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch")
RandomTransform = Callable[[bytes, np.random.Generator], np.ndarray]

# After so many damaged replacements in a row the data set is broken, whatever share is allowed.
_MAX_REPLACEMENTS = 100


class Damaged(NamedTuple):
    """One image that could not be decoded.

    Attributes:
      key: the file or record.
      reason: what Pillow found.
    """

    key: str
    reason: str


class TooMuchDamageError(ValueError):
    """More images could not be decoded than the configured share allows."""


@dataclass
class DamageReport:
    """What one host's loader met so far.

    Attributes:
      max_share: damaged images allowed, as a share of the images drawn.
      epoch_size: images this host draws in an epoch. The share is never taken of fewer, so that
        one damaged image at the start of a run is not one of a hundred.
      drawn: images drawn, damaged ones included.
      count: times a damaged image was drawn; an image that comes up every epoch counts each time.
      reasons: the reason by key, an entry a damaged file or record.
    """

    max_share: float
    epoch_size: int
    drawn: int = 0
    count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def start(self, drawn: int, count: int) -> None:
        """Goes on from what was drawn and counted before a run was interrupted."""
        self.drawn, self.count = drawn, count

    def add(self, images: int, damaged: Sequence[Damaged]) -> None:
        """Enters one batch of `images` rows in which `damaged` had to be replaced.

        Logs a warning for every file or record met for the first time.

        Raises:
          TooMuchDamageError: past `max_share`.
        """
        self.drawn += images + len(damaged)
        self.count += len(damaged)
        for key, reason in damaged:
            if key not in self.reasons:
                logging.warning("Damaged image, replaced by another: %s (%s)", key, reason)
                self.reasons[key] = reason
        if self.count > self.max_share * max(self.drawn, self.epoch_size):
            key, reason = damaged[-1]
            raise TooMuchDamageError(
                f"{self.count} of the {self.drawn} images drawn so far could not be decoded, which "
                f"is more than the allowed share of {self.max_share:g}; the last was {key} "
                f"({reason}): repair or remove such files, or raise config.data.max_damaged_share."
            )


class TrainLoader(Iterator[Batch]):
    """Training batches of one host; what `train_batches` returns.

    Attributes:
      damage: how many images could not be decoded so far, and which (`DamageReport`).
    """

    def __init__(self, steps: StepIterator, damage: DamageReport):
        """Wraps the iterator over `(batch, damaged)` pairs."""
        self._steps = steps
        self.damage = damage

    def __next__(self) -> Batch:
        batch, damaged = next(self._steps)
        try:
            self.damage.add(len(batch["label"]), [Damaged(*each) for each in damaged])
        except ValueError:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Stops the worker processes; the loader is then at its end."""
        self._steps.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def train_batches(
    source: Source,
    transform: RandomTransform,
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
    """This host's share of the global training batches of steps start_step … num_steps − 1.

    An epoch is ⌊N / batch_size⌋ steps over a fresh permutation of the examples. The images of a
    step depend on the seed and the step alone, not on hosts, workers or where a run was resumed.
    An image that cannot be decoded is replaced by one drawn from the whole data set.

    Args:
      source: the data set.
      transform: `(encoded, rng)` → uint8 `[H, W, 3]`, of one size; raises DamagedImageError for
        bytes it cannot decode.
      batch_size: images in a global batch; each host reads a contiguous 1/host_count of it.
      seed: in [0, 2³²); decides the order and every distortion.
      num_steps: one past the last step, counted from 0 over all epochs.
      start_step: the first step; where to resume.
      num_workers: worker processes; 0 prepares batches in a thread of this process.
      host_index, host_count: which host this is, of how many.
      max_damaged_share: share of the images drawn that may be damaged before the loader stops.

    Returns:
      An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32 [...]}`,
      with `damage` and `close`. Its `next` raises TooMuchDamageError past the share, ValueError
      for a label outside the classes, RuntimeError where a worker process died.

    Raises:
      ValueError: an argument makes no sense; the message says which.
    """
    check_seed(seed)
    local_size = _local_batch_size(batch_size, host_index, host_count)
    if not 0 <= max_damaged_share <= 1:
        raise ValueError(f"max_damaged_share must lie in [0, 1], not {max_damaged_share}.")
    damage = DamageReport(max_damaged_share, steps_per_epoch(len(source), batch_size) * local_size)
    make = _TrainBatch(
        source,
        transform,
        batch_size=batch_size,
        seed=seed,
        host_index=host_index,
        host_count=host_count,
        shared=num_workers > 0,
    )
    return TrainLoader(StepIterator(make, start_step, num_steps, num_workers), damage)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> StepIterator:
    """This host's share of all images once, in the source's order, in batches of one shape.

    Args:
      source: the data set.
      transform: encoded bytes → uint8 `[H, W, 3]`.
      batch_size, num_workers, host_index, host_count: as in `train_batches`.

    Returns:
      An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32,
      "mask": bool, "index": int32}`, with `close`. Where the images run out, rows are padding:
      mask False, index −1, label 0, image black. Every host yields the same number of batches.
      Its `next` raises DamagedImageError, naming the file, at an image that cannot be decoded:
      evaluation skips nothing.

    Raises:
      ValueError: an argument makes no sense; the message says which.
    """
    _local_batch_size(batch_size, host_index, host_count)
    make = _EvalBatch(
        source,
        transform,
        batch_size=batch_size,
        host_index=host_index,
        host_count=host_count,
        shared=num_workers > 0,
    )
    return StepIterator(make, 0, -(-len(source) // batch_size), num_workers)


def prefetch_to_device(
    batches: Iterable[HostBatch], put: Callable[[HostBatch], DeviceBatch], *, ahead: int = 2
) -> Iterator[DeviceBatch]:
    """Yields `put(batch)` in order, `ahead` batches before they are asked for.

    JAX's transfers return at once, and so do compiled steps: while the device computes a step, the
    next batches are on their way to it.

    Args:
      batches: host batches, such as `train_batches` gives.
      put: starts the transfer, such as `lambda batch: jax.device_put(batch, sharding)`.
      ahead: batches kept on the device beside the one in use; each takes its memory.

    Raises:
      ValueError: `ahead` is less than 1. Errors of `batches` come up to `ahead` batches early.
    """
    if ahead < 1:
        raise ValueError(f"ahead must be at least 1, not {ahead}.")
    waiting: deque[DeviceBatch] = deque()
    for batch in batches:
        waiting.append(put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _local_batch_size(batch_size: int, host_index: int, host_count: int) -> int:
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index must lie in [0, {host_count}), not {host_index}.")
    if batch_size <= 0 or batch_size % host_count:
        raise ValueError(
            f"The global batch of {batch_size} images must be a positive multiple of the "
            f"{host_count} hosts that share it."
        )
    return batch_size // host_count


def _read(source: Source, index: int) -> Example:
    example = source[index]
    if not 0 <= example.label < source.num_classes:
        raise ValueError(
            f"{example.key} has the label {example.label}, outside 0 … {source.num_classes - 1}: "
            "correct it, or choose a split that has labels."
        )
    return example


@dataclass(frozen=True, kw_only=True)
class _HostBatch:
    """What training and evaluation batches of a host have in common."""

    batch_size: int
    host_index: int
    host_count: int
    shared: bool

    def rows(self, number: int) -> range:
        """This host's positions in the global batches laid end to end, for batch `number`."""
        local_size = self.batch_size // self.host_count
        first = number * self.batch_size + self.host_index * local_size
        return range(first, first + local_size)


@dataclass(frozen=True)
class _TrainBatch(_HostBatch):
    """A host's slice of the global training batch, and its damaged images, by step number."""

    source: Source
    transform: RandomTransform
    seed: int

    def __call__(self, step: int) -> tuple[Batch, list[Damaged]]:
        epoch, step_in_epoch = divmod(step, steps_per_epoch(len(self.source), self.batch_size))
        positions = self.rows(step_in_epoch)
        labels = np.empty(len(positions), np.int32)
        damaged: list[Damaged] = []
        images = None
        try:
            for row, position in enumerate(positions):
                image, labels[row] = self._draw(epoch, position, damaged)
                if images is None:
                    shape = (len(positions), *image.shape)
                    images = new_array(shape, np.uint8, shared=self.shared)
                images[row] = image
        except BaseException:
            if images is not None:
                discard(images)
            raise
        return {"image": images, "label": labels}, damaged

    def _draw(self, epoch: int, position: int, damaged: list[Damaged]) -> tuple[np.ndarray, int]:
        """The distorted image and label for a position; enters damaged ones on the way."""
        place = {"seed": self.seed, "epoch": epoch, "position": position}
        index = example_index(len(self.source), **place)
        for attempt in range(1, _MAX_REPLACEMENTS + 1):
            example = _read(self.source, index)
            try:
                return self.transform(example.encoded, example_rng(**place)), example.label
            except DamagedImageError as error:
                damaged.append(Damaged(example.key, str(error)))
            index = replacement_index(len(self.source), attempt=attempt, **place)
        raise DamagedImageError(
            f"{_MAX_REPLACEMENTS} images in a row could not be decoded; the last was "
            f"{damaged[-1].key} ({damaged[-1].reason}): is this a data set of images?"
        )


@dataclass(frozen=True)
class _EvalBatch(_HostBatch):
    """A host's slice of a global evaluation batch, by its number; padded past the end."""

    source: Source
    transform: EvalTransform

    def __call__(self, number: int) -> Batch:
        rows = self.rows(number)
        height, width = height_and_width(self.transform.resolution)
        images = new_array((len(rows), height, width, 3), np.uint8, shared=self.shared)
        batch = {
            "image": images,
            "label": np.zeros(len(rows), np.int32),
            "mask": np.zeros(len(rows), bool),
            "index": np.full(len(rows), -1, np.int32),
        }
        try:
            for row, index in enumerate(rows):
                if index >= len(self.source):
                    images[row:] = 0
                    break
                example = _read(self.source, index)
                images[row] = self._decode(example)
                batch["label"][row] = example.label
                batch["mask"][row] = True
                batch["index"][row] = index
        except BaseException:
            discard(images)
            raise
        return batch

    def _decode(self, example: Example) -> np.ndarray:
        try:
            return self.transform(example.encoded)
        except DamagedImageError as error:
            raise DamagedImageError(
                f"Evaluation stops at {example.key}, which cannot be decoded ({error}): repair or "
                "remove it."
            ) from error
