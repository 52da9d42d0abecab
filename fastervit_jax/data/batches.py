"""Batches in order: the loader.

A batch is a function of its step number (`order.py`), so the loader has no state but that number.
Grain runs the function over the steps, in worker processes that hand batches over in shared memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastervit_jax.data.images import EvalTransform, height_and_width
from fastervit_jax.data.order import (
    check_seed,
    example_index,
    example_rng,
    steps_per_epoch,
)
from fastervit_jax.data.sources import Source

Batch = dict[str, np.ndarray]


def _local_batch_size(batch_size: int, host_index: int, host_count: int) -> int:
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index must lie in [0, {host_count}), not {host_index}.")
    if batch_size <= 0 or batch_size % host_count:
        raise ValueError(
            f"The global batch of {batch_size} images must be a multiple of the {host_count} "
            "hosts that share it."
        )
    return batch_size // host_count


@dataclass(frozen=True)
class _TrainBatch:
    """A host's slice of the global training batch, by step number."""

    source: Source
    transform: Callable[[bytes, np.random.Generator], np.ndarray]
    batch_size: int
    seed: int
    host_index: int
    host_count: int

    def __call__(self, step: int) -> Batch:
        local = self.batch_size // self.host_count
        epoch, step_in_epoch = divmod(step, steps_per_epoch(len(self.source), self.batch_size))
        first = step_in_epoch * self.batch_size + self.host_index * local
        images, labels = [], []
        for position in range(first, first + local):
            index = example_index(len(self.source), seed=self.seed, epoch=epoch, position=position)
            rng = example_rng(seed=self.seed, epoch=epoch, position=position)
            example = self.source[index]
            images.append(self.transform(example.encoded, rng))
            labels.append(example.label)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}


@dataclass(frozen=True)
class _EvalBatch:
    """A host's slice of a global evaluation batch, by its number; padded past the end."""

    source: Source
    transform: EvalTransform
    batch_size: int
    host_index: int
    host_count: int

    def __call__(self, number: int) -> Batch:
        local = self.batch_size // self.host_count
        first = number * self.batch_size + self.host_index * local
        height, width = height_and_width(self.transform.resolution)
        batch = {
            "image": np.zeros((local, height, width, 3), np.uint8),
            "label": np.zeros(local, np.int32),
            "mask": np.zeros(local, bool),
            "index": np.full(local, -1, np.int32),
        }
        for row, index in enumerate(range(first, min(first + local, len(self.source)))):
            example = self.source[index]
            batch["image"][row] = self.transform(example.encoded)
            batch["label"][row] = example.label
            batch["mask"][row] = True
            batch["index"][row] = index
        return batch


def train_batches(
    source: Source,
    transform: Callable[[bytes, np.random.Generator], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """This host's share of the global training batches of steps start_step … num_steps − 1.

    Args:
      source: the data set.
      transform: `(encoded, rng)` → uint8 `[H, W, 3]`.
      batch_size: images in a global batch; each host reads a contiguous 1/host_count of it.
      seed: in [0, 2³²); decides the order and every distortion.
      num_steps: one past the last step (counted from 0 over all epochs).
      start_step: the first step; where to resume.
      num_workers: worker processes; 0 prepares batches in a thread of this process.
      host_index, host_count: which host this is, of how many.

    Returns:
      An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32 [...]}`.
    """
    check_seed(seed)
    _local_batch_size(batch_size, host_index, host_count)
    steps_per_epoch(len(source), batch_size)
    make = _TrainBatch(source, transform, batch_size, seed, host_index, host_count)
    return _run(make, start_step, num_steps, num_workers)


def eval_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """This host's share of all images once, in the source's order, in batches of equal shape.

    Returns:
      An iterator of `{"image": uint8 [batch_size / host_count, H, W, 3], "label": int32,
      "mask": bool, "index": int32}`. Where the images run out, rows are padding: mask False,
      index −1, label 0, image zeros. Every host yields the same number of batches.
    """
    _local_batch_size(batch_size, host_index, host_count)
    make = _EvalBatch(source, transform, batch_size, host_index, host_count)
    return _run(make, 0, -(-len(source) // batch_size), num_workers)


def _run(make: Callable[[int], Batch], start: int, stop: int, num_workers: int) -> Iterator[Batch]:
    """Yields `make(start) … make(stop - 1)`, prepared ahead, in order."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if start >= stop:
        return iter(())
    steps = grain.MapDataset.range(start, stop).map(make)
    batches = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    if num_workers:
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
        batches = batches.mp_prefetch(options)
    return iter(batches)
