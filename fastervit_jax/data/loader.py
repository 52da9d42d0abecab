"""The loader: training and evaluation batches in a fixed order.

A batch depends only on the seed and the step number (`order.py`). The step number is therefore the
loader's only state. To resume, create a new loader with another `start_step`. This costs nothing,
and the number of workers and hosts may change.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import logging

from fastervit_jax.data.images import (
    AS_THE_REFERENCE,
    DamagedImageError,
    Decoding,
    EvalTransform,
    describe_seen,
    height_and_width,
    take_seen,
)
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
ExampleTransform = Callable[[Any, np.random.Generator], Batch]

# After this many damaged images in a row the loader stops, whatever share is allowed.
_MAX_REPLACEMENTS = 100


class Damaged(NamedTuple):
    """One image that could not be decoded.

    Attributes:
        key: name of the file or record.
        reason: why it could not be decoded.
    """

    key: str
    reason: str


class TooMuchDamageError(ValueError):
    """More images could not be decoded than the configured share allows."""


@dataclass
class DamageReport:
    """Counts the damaged images that the loader of one host has drawn.

    Attributes:
        max_share: allowed number of damaged images, divided by the number of images drawn.
        epoch_size: images that this host draws per epoch. The share is computed over at least this
            many images. Otherwise one damaged image at the start of a run would exceed it.
        drawn: images drawn, including damaged ones.
        count: how often a damaged image was drawn. An image that is drawn in every epoch counts
            every time.
        reasons: maps the name of each damaged file or record to the reason.
    """

    max_share: float
    epoch_size: int
    drawn: int = 0
    count: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def start(self, drawn: int, count: int) -> None:
        """Restores the counts of a run that was interrupted."""
        self.drawn, self.count = drawn, count

    def add(self, images: int, damaged: Sequence[Damaged]) -> None:
        """Counts one batch of `images` rows, in which the images `damaged` were replaced.

        Logs a warning the first time that each file or record is damaged.

        Raises:
            TooMuchDamageError: the share of damaged images exceeds `max_share`.
        """
        self.drawn += images + len(damaged)
        self.count += len(damaged)
        for key, reason in damaged:
            if key not in self.reasons:
                logging.warning("Damaged image, replaced by another one: %s (%s)", key, reason)
                self.reasons[key] = reason
        if self.count > self.max_share * max(self.drawn, self.epoch_size):
            key, reason = damaged[-1]
            raise TooMuchDamageError(
                f"Too many damaged images: {self.count} of the {self.drawn} images drawn so far "
                f"could not be decoded. The allowed share is {self.max_share:g}. The last one was "
                f"{key} ({reason}). Repair or remove these files, or raise "
                "config.data.max_damaged_share."
            )


@dataclass(frozen=True)
class _Counted:
    """Adds to what `make` returns the special images that it decoded (`images.take_seen`)."""

    make: Callable[[int], Any]

    def __call__(self, step: int) -> tuple[Any, dict[str, int]]:
        return self.make(step), take_seen()


class ReportedSteps(Iterator[Any]):
    """The values of `make(start) … make(stop − 1)`, with one warning about special images.

    The warning says how many images are transparent, turned or very large. It comes after
    `report_after` steps, or at the end.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        num_workers: int,
        *,
        decoding: Decoding,
        report_after: int | None = None,
    ):
        """Prepares the iteration (see `StepIterator`)."""
        self._steps = StepIterator(_Counted(make), start, stop, num_workers)
        self._counts: Counter[str] = Counter()
        self._decoding = decoding
        self._left = report_after
        self._reported = False

    def __next__(self) -> Any:
        try:
            value, seen = next(self._steps)
        except StopIteration:
            self._report()
            raise
        self._counts.update(seen)
        if self._left is not None:
            self._left -= 1
            if not self._left:
                self._report()
        return value

    def close(self) -> None:
        """Stops the workers and ends the iteration."""
        self._steps.close()
        self._report()

    def __enter__(self) -> "ReportedSteps":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _report(self) -> None:
        if not self._reported:
            for sentence in describe_seen(self._counts, self._decoding):
                logging.warning("%s", sentence)
        self._reported = True


def _decoding_of(transform: Any) -> Decoding:
    inner = getattr(transform, "transform", transform)
    return getattr(inner, "decoding", AS_THE_REFERENCE)


class TrainLoader(Iterator[Batch]):
    """Iterator over the training batches of one host. `train_batches` creates it.

    Attributes:
        damage: how many images could not be decoded so far, and which ones.
    """

    def __init__(self, steps: ReportedSteps | StepIterator, damage: DamageReport):
        """Wraps the iterator over `(batch, damaged)` pairs."""
        self._steps = steps
        self.damage = damage

    def __next__(self) -> Batch:
        batch, damaged = next(self._steps)
        try:
            self.damage.add(len(next(iter(batch.values()))), [Damaged(*each) for each in damaged])
        except ValueError:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Stops the worker processes and ends the iteration."""
        self._steps.close()

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def train_batches(source: Source, transform: RandomTransform, **options: Any) -> TrainLoader:
    """Returns this host's part of the training batches for steps start_step … num_steps − 1.

    An epoch has ⌊N / batch_size⌋ steps and uses a new permutation of the N examples. The images of
    a step depend only on the seed and the step. They do not depend on the number of hosts or
    workers, or on where a run was resumed. An image that cannot be decoded is replaced by another
    image, drawn at random from the whole data set.

    Args:
        source: the data set.
        transform: maps `(encoded, rng)` to uint8 `[H, W, 3]`, always of the same size. Raises
            DamagedImageError for bytes that it cannot decode.
        **options: those of `example_batches`.

    Returns:
        An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32
        [batch_size / host_count]}`, with the attribute `damage` and the method `close`. `next`
        raises TooMuchDamageError if too many images are damaged, ValueError for a label outside the
        classes, and RuntimeError if a worker process died.

    Raises:
        ValueError: an argument is invalid. The message says which one.
    """
    return example_batches(source, _LabeledImage(transform, source.num_classes), **options)


def example_batches(
    source: Any,
    transform: ExampleTransform,
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
    """Returns this host's part of the training batches of any task (see `train_batches`).

    Args:
        source: the data set; an example has a `key`.
        transform: maps `(example, rng)` to arrays by name, always of the same shapes and types.
            Raises DamagedImageError for an example that another one is to replace.
        batch_size: images in a global batch. Each host reads a contiguous part of
            `batch_size / host_count` images.
        seed: integer in [0, 2³²). Determines the order and all random distortions.
        num_steps: the last step plus one. Steps are counted from 0 over all epochs.
        start_step: the first step. To resume, pass the step at which to continue.
        num_workers: worker processes. With 0, a thread of this process prepares the batches.
        host_index: number of this host, from 0.
        host_count: number of hosts.
        max_damaged_share: the loader stops if a larger share of the images drawn is damaged.

    Returns:
        An iterator of the stacked arrays by name, with the attribute `damage` and the method
        `close`. `next` raises as that of `train_batches`.

    Raises:
        ValueError: an argument is invalid. The message says which one.
    """
    check_seed(seed)
    local_size = _local_batch_size(batch_size, host_index, host_count)
    if not 0 <= max_damaged_share <= 1:
        raise ValueError(f"Invalid max_damaged_share: expected 0 to 1, got {max_damaged_share}.")
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
    steps = ReportedSteps(
        make,
        start_step,
        num_steps,
        num_workers,
        decoding=_decoding_of(transform),
        report_after=steps_per_epoch(len(source), batch_size),
    )
    return TrainLoader(steps, damage)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> ReportedSteps:
    """Returns this host's part of all images, in the order of the source.

    All batches have the same shape, on every host.

    Args:
        source: the data set.
        transform: maps encoded bytes to uint8 `[H, W, 3]`.
        batch_size: as in `train_batches`.
        num_workers: as in `train_batches`.
        host_index: as in `train_batches`.
        host_count: as in `train_batches`.

    Returns:
        An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32, "mask":
        bool, "index": int32}`, with the method `close`. After the last image, rows are padding:
        mask False, index −1, label 0, black image. Every host yields the same number of batches.
        `next` raises DamagedImageError with the name of the file if an image cannot be decoded.
        Evaluation does not skip images.

    Raises:
        ValueError: an argument is invalid. The message says which one.
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
    stop = -(-len(source) // batch_size)
    return ReportedSteps(make, 0, stop, num_workers, decoding=transform.decoding)


def prefetch_to_device(
    batches: Iterable[HostBatch], put: Callable[[HostBatch], DeviceBatch], *, ahead: int = 2
) -> Iterator[DeviceBatch]:
    """Yields `put(batch)` in order, and starts each transfer `ahead` batches early.

    Transfers and compiled steps are asynchronous in JAX. The next batches are transferred while the
    device computes a step.

    Args:
        batches: host batches, for example from `train_batches`.
        put: starts the transfer, for example `lambda batch: jax.device_put(batch, sharding)`.
        ahead: batches on the device in addition to the one in use. Each needs device memory.

    Raises:
        ValueError: `ahead` is less than 1.
        Exception: errors of `batches` are raised up to `ahead` batches early.
    """
    if ahead < 1:
        raise ValueError(f"Invalid ahead: expected at least 1, got {ahead}.")
    waiting: deque[DeviceBatch] = deque()
    for batch in batches:
        waiting.append(put(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def _local_batch_size(batch_size: int, host_index: int, host_count: int) -> int:
    if not 0 <= host_index < host_count:
        raise ValueError(f"Invalid host_index: expected 0 to {host_count - 1}, got {host_index}.")
    if batch_size <= 0 or batch_size % host_count:
        raise ValueError(
            f"Invalid batch_size: expected a positive multiple of the {host_count} hosts, got "
            f"{batch_size}."
        )
    return batch_size // host_count


def _checked_label(example: Example, num_classes: int) -> int:
    if not 0 <= example.label < num_classes:
        raise ValueError(
            f"Invalid label of {example.key}: expected 0 to {num_classes - 1}, got "
            f"{example.label}. Correct the label, or choose a split that has labels."
        )
    return example.label


@dataclass(frozen=True)
class _LabeledImage:
    """The transform of an image as one of an example with a label."""

    transform: RandomTransform
    num_classes: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Batch:
        label = _checked_label(example, self.num_classes)
        return {"image": self.transform(example.encoded, rng), "label": np.asarray(label, np.int32)}


@dataclass(frozen=True, kw_only=True)
class _HostBatch:
    """Common base of the training and evaluation batches of one host."""

    batch_size: int
    host_index: int
    host_count: int
    shared: bool

    def rows(self, number: int) -> range:
        """Positions, counted over all global batches, that this host reads for batch `number`."""
        local_size = self.batch_size // self.host_count
        first = number * self.batch_size + self.host_index * local_size
        return range(first, first + local_size)


@dataclass(frozen=True)
class _TrainBatch(_HostBatch):
    """Maps a step to this host's part of the training batch and its damaged images."""

    source: Any
    transform: ExampleTransform
    seed: int

    def __call__(self, step: int) -> tuple[Batch, list[Damaged]]:
        epoch, step_in_epoch = divmod(step, steps_per_epoch(len(self.source), self.batch_size))
        positions = self.rows(step_in_epoch)
        damaged: list[Damaged] = []
        batch: Batch = {}
        try:
            for row, position in enumerate(positions):
                arrays = self._draw(epoch, position, damaged)
                for name, array in arrays.items():
                    if name not in batch:
                        shape = (len(positions), *array.shape)
                        # Shared memory is for what is large.
                        shared = self.shared and array.ndim > 0
                        batch[name] = new_array(shape, array.dtype, shared=shared)
                    batch[name][row] = array
        except BaseException:
            for array in batch.values():
                discard(array)
            raise
        assert batch, "a host's batch has at least one image"
        return batch, damaged

    def _draw(self, epoch: int, position: int, damaged: list[Damaged]) -> Batch:
        """Returns the arrays of a distorted example. Appends damaged images to `damaged`."""
        place = {"seed": self.seed, "epoch": epoch, "position": position}
        index = example_index(len(self.source), **place)
        for attempt in range(1, _MAX_REPLACEMENTS + 1):
            example = self.source[index]
            try:
                return self.transform(example, example_rng(**place))
            except DamagedImageError as error:
                damaged.append(Damaged(example.key, str(error)))
            index = replacement_index(len(self.source), attempt=attempt, **place)
        raise DamagedImageError(
            f"{_MAX_REPLACEMENTS} images in a row could not be decoded. The last one was "
            f"{damaged[-1].key} ({damaged[-1].reason}). Check that the data set contains images."
        )


@dataclass(frozen=True)
class _EvalBatch(_HostBatch):
    """Maps a batch number to this host's part of the evaluation batch, padded after the end."""

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
                example = self.source[index]
                batch["label"][row] = _checked_label(example, self.source.num_classes)
                images[row] = self._decode(example)
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
                f"Evaluation stopped: {example.key} cannot be decoded ({error}). Repair or remove "
                "the file."
            ) from error
