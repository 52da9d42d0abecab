"""Hands batches to the device ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

HostBatch = TypeVar("HostBatch")
DeviceBatch = TypeVar("DeviceBatch")


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
