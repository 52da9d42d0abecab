"""Runs a function over step numbers, in worker processes where asked, keeping the order.

Grain does the work: its workers are spawned, each takes every n-th step, and arrays come back in
shared memory. What is added here makes it fail loudly and clean up.
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
    """An array to fill; `shared` puts it where Grain hands it to the parent without a copy."""
    if not shared:
        return np.empty(shape, dtype)
    from grain.multiprocessing import SharedMemoryArray

    return SharedMemoryArray(shape, dtype)


def discard(array: np.ndarray) -> None:
    """Frees the shared memory of an array that will not be handed over after all."""
    release = getattr(array, "unlink_on_del", None)
    if release is not None:
        release()


class StepIterator(Iterator[Any]):
    """Yields `make(start) … make(stop − 1)`, prepared ahead of time.

    Use it as a context manager, or call `close`, to stop the workers before the end.
    """

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, num_workers: int):
        """Prepares the iteration; workers start with the first `next`.

        Args:
          make: a function of the step number; must pickle where there are workers.
          start, stop: the range of steps, stop excluded.
          num_workers: worker processes; 0 uses a thread of this process.

        Raises:
          ValueError: the range or the number of workers makes no sense.
        """
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, not {num_workers}.")
        if not 0 <= start <= stop:
            raise ValueError(f"The steps must run from 0 or later, not from {start} to {stop}.")
        self._remaining = stop - start
        self._workers = min(num_workers, self._remaining)
        self._iterator = None
        if self._remaining:
            self._iterator = _grain_iterator(make, start, stop, self._workers)

    def __next__(self) -> Any:
        # Counted here: Grain's own StopIteration would bring a traceback that keeps the last
        # arrays, and their shared memory, alive.
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
                    "that the machine ran out of memory (use fewer workers), -7 that /dev/shm is "
                    "too small for the batches (docker run --shm-size)."
                ) from error
            raise

    def close(self) -> None:
        """Stops the workers; the iterator is then at its end."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        # The last frames of Grain's threads hold the last arrays in reference cycles, and memory
        # left to the end of the process would be reported as leaked. An array's memory is closed by
        # a thread of Grain's. Were its SharedMemory garbage at the same time, Python's collector
        # would close that, too, and where the two meet, one fails and the memory stays.
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
    """All shared memory that this process has open."""
    return [thing for thing in gc.get_objects() if type(thing) is SharedMemory]


def _clear_frames(error: BaseException) -> None:
    """Makes a worker's error let go of the arrays in Grain's frames, for the reason in `close`."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        # Frames that show where a worker was are Grain's making, called by those with the arrays.
        for caller, _ in traceback.walk_stack(frame):
            with contextlib.suppress(RuntimeError):  # it is running
                caller.clear()


def _grain_iterator(make: Callable[[int], Any], start: int, stop: int, num_workers: int) -> Any:
    import grain
    from absl import flags

    steps = grain.MapDataset.range(start, stop).map(_PortableErrors(make))
    if not num_workers:
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        return iter(steps.to_iter_dataset(one_ahead))
    # Grain reads absl flags of its own, which a library or a test has no reason to have parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # No threads inside a worker: one batch waits in its queue while it makes the next.
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(
        steps.to_iter_dataset(no_threads).mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=_start_worker,
        )
    )


@dataclass(frozen=True)
class _PortableErrors:
    """Calls a function and lets only such errors out as survive the way to another process.

    Grain sends errors through a queue; one that does not pickle would be lost there, and the parent
    would wait for ever.
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
    """Runs at the start of every worker process."""
    del index, count
    # Ctrl-C reaches the whole process group, and SIGTERM may: the parent decides what becomes of
    # it, and needs batches until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
