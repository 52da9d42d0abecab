"""Progress of a run: a bar on a terminal, plain lines in a log; and a profiler trace."""

import contextlib
import resource
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from etils import epath

from fastervit_jax.data.progress import ProgressBar

Item = TypeVar("Item")


class Progress:
    """Counts steps, measures the speed and shows both. Only the first process shows them.

    Args:
        start: steps done before.
        total: steps of the whole run.
        batch_size: images per step.
    """

    def __init__(self, start: int, total: int, batch_size: int):
        first = jax.process_index() == 0
        self._bar = ProgressBar(total, unit="step", start=start, visible=first, smoothing=0.05)
        self._batch_size = batch_size
        self._mark, self._mark_step = time.monotonic(), start
        self._waited = 0.0

    def waiting_for(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yields the batches, and measures how long the step waits for each."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def step_done(self) -> None:
        """Counts a step."""
        self._bar.update()

    def speed(self) -> dict[str, float]:
        """Measurements since the last call.

        Returns:
            `images_per_second`; `step_seconds`; `waiting_share`, the share of the time that was
            spent waiting for batches; `memory_gib`, the peak memory of the first device, or of this
            process where the device does not report it.
        """
        now = time.monotonic()
        elapsed = now - self._mark
        seconds = elapsed / max(self._bar.done - self._mark_step, 1)
        share = self._waited / elapsed
        self._mark, self._mark_step, self._waited = now, self._bar.done, 0.0
        return {
            "images_per_second": self._batch_size / seconds,
            "step_seconds": seconds,
            "waiting_share": share,
            "memory_gib": _peak_memory() / 2**30,
        }

    def show(self, **values: float) -> None:
        """Shows the metrics of a step."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        bar = self._bar
        left = f"{bar.seconds_left():.0f} s left"
        bar.show(text, f"step {bar.done}/{bar.total}  {text}  {left}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.say(line)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _peak_memory() -> int:
    """Peak memory in bytes of the first device; of the process, on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.get("peak_bytes_in_use", in_kib * 1024)


class Profile:
    """Traces some steps to `profile/` in the work directory.

    Args:
        workdir: the work directory.
        steps: the first and the last step to trace; (0, 0) for none.
    """

    def __init__(self, workdir: epath.Path, steps: tuple[int, int]):
        self._directory = str(workdir / "profile")
        self._first, self._last = steps

    @contextlib.contextmanager
    def of_step(self, step: int) -> Iterator[None]:
        """Wraps a step. Starts the trace at the first step, writes it after the last."""
        if step == self._first:
            jax.profiler.start_trace(self._directory)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == self._last and self._first:
            jax.profiler.stop_trace()
            print(
                f"Traced steps {self._first} to {self._last}. To view it: pip install xprof, then "
                f"xprof --logdir={self._directory}",
                flush=True,
            )
