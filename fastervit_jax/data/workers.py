"""Run a function over step numbers in order, optionally in worker processes.

Grain starts the workers. Each worker computes every n-th step and returns its arrays in shared
memory. This file adds clear errors and the cleanup of processes and memory.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np


def new_array(shape: tuple[int, ...], dtype: np.typing.DTypeLike, *, shared: bool) -> np.ndarray:
    """Returns an empty array.

    With `shared`, it lies in shared memory, and Grain passes it to the parent without a copy.
    """
    if not shared:
        return np.empty(shape, dtype)
    from grain.multiprocessing import SharedMemoryArray

    return SharedMemoryArray(shape, dtype)


def discard(array: np.ndarray) -> None:
    """Frees the shared memory of an array that will not be passed to the parent."""
    release = getattr(array, "unlink_on_del", None)
    if release is not None:
        release()


class StepIterator(Iterator[Any]):
    """Yields `make(start) … make(stop − 1)` and computes the next values in the background.

    To stop the workers early, use it as a context manager or call `close`.
    """

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, num_workers: int):
        """Prepares the iteration. The first `next` starts the workers.

        Args:
            make: a function of the step number. It must be picklable if there are workers.
            start: the first step.
            stop: the last step plus one.
            num_workers: worker processes; 0 uses a thread of this process.

        Raises:
            ValueError: the range or the number of workers is invalid.
        """
        if num_workers < 0:
            raise ValueError(f"Invalid num_workers: expected 0 or more, got {num_workers}.")
        if not 0 <= start <= stop:
            raise ValueError(
                f"Invalid steps: expected 0 <= start <= stop, got start={start} and stop={stop}."
            )
        self._remaining = stop - start
        self._workers = min(num_workers, self._remaining)
        self._iterator = None
        if self._remaining:
            self._iterator = _grain_iterator(make, start, stop, self._workers)

    def __next__(self) -> Any:
        # The steps are counted here, because the traceback of Grain's own StopIteration would keep
        # the last arrays and their shared memory alive.
        if not self._remaining:
            self.close()
        if self._iterator is None:
            raise StopIteration
        try:
            self._remaining -= 1
            return next(self._iterator)
        except BaseException as error:
            if self._workers:
                _clear_frames(error)
            self.close()
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                raise RuntimeError(
                    f"A worker process of the loader died: {error} Exit code -9 usually means "
                    "that the machine ran out of memory: use fewer workers. Exit code -7 usually "
                    "means that /dev/shm is too small for the batches: enlarge it (docker run "
                    "--shm-size)."
                ) from error
            raise

    def close(self) -> None:
        """Stops the workers and ends the iteration."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        # The frames of Grain's threads keep the last arrays in reference cycles. Python reports
        # such memory as leaked when the process ends, so it is collected here. A thread of Grain
        # closes the memory of an array. If Python's garbage collector closed the same SharedMemory
        # at the same time, one of the two would fail and the memory would leak. The references in
        # `kept` prevent that.
        kept = _shared_memory()
        iterator.close()
        del iterator
        kept += _shared_memory()
        gc.collect()

    def __enter__(self) -> "StepIterator":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _shared_memory() -> list[SharedMemory]:
    """Returns all shared memory that this process has open."""
    return [thing for thing in gc.get_objects() if type(thing) is SharedMemory]


def _clear_frames(error: BaseException) -> None:
    """Drops the arrays that a worker's error keeps alive in Grain's frames (see `close`)."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # The frames of the traceback are created by Grain. Their callers hold the arrays.
        for caller, _ in traceback.walk_stack(frame):
            with contextlib.suppress(RuntimeError):  # the frame is still running
                caller.clear()


def _grain_iterator(make: Callable[[int], Any], start: int, stop: int, num_workers: int) -> Any:
    import grain
    from absl import flags

    steps = grain.MapDataset.range(start, stop).map(_PortableErrors(make))
    if not num_workers:
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return iter(steps.to_iter_dataset(one_ahead))
    # Grain reads its own absl flags. They are not parsed if this runs as a library or in a test.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # A worker needs no threads: one batch waits in its queue while it computes the next one.
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(
        steps.to_iter_dataset(no_threads).mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_start_worker,
        )
    )


@dataclass(frozen=True)
class _PortableErrors:
    """Calls a function and replaces errors that cannot be pickled.

    Grain sends errors to the parent through a queue. An error that cannot be pickled would be lost,
    and the parent would wait forever.
    """

    make: Callable[[int], Any]

    def __call__(self, step: int) -> Any:
        try:
            return self.make(step)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                raise RuntimeError(f"{type(error).__name__}: {error}") from None
            raise


def _start_worker(index: int, count: int) -> None:
    """Initializes a worker process."""
    del index, count
    # Ctrl-C, and sometimes SIGTERM, reaches the whole process group. The parent decides how to
    # react, and still needs batches until it stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when its parent has ended, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
