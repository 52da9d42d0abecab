"""Progress of a run: a bar on a terminal, plain lines in a log; and a profiler trace."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import tqdm
from etils import epath

Item = TypeVar("Item")


class Progress:
    """Counts steps, measures the speed and shows both. Only the first process shows them.

    Args:
        start: steps done before.
        total: steps of the whole run.
        batch_size: images a step.
    """

    def __init__(self, start: int, total: int, batch_size: int):
        self._silent = jax.process_index() != 0
        self._terminal = sys.stderr.isatty() and not self._silent
        self._bar = tqdm.tqdm(
            initial=start, total=total, unit="step", disable=not self._terminal, smoothing=0.05
        )
        self._total = total
        self._batch_size = batch_size
        self._begin = self._mark = time.monotonic()
        self._start = self._mark_step = self._step = start
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
        self._step += 1
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
        seconds = elapsed / max(self._step - self._mark_step, 1)
        share = self._waited / elapsed
        self._mark, self._mark_step, self._waited = now, self._step, 0.0
        return {
            "images_per_second": self._batch_size / seconds,
            "step_seconds": seconds,
            "waiting_share": share,
            "memory_gib": _peak_memory() / 2**30,
        }

    def show(self, **values: float) -> None:
        """Shows a step's figures."""
        if self._silent:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._terminal:
            self._bar.set_postfix_str(text)
            return
        done = self._step - self._start
        left = (time.monotonic() - self._begin) / max(done, 1) * (self._total - self._step)
        print(f"step {self._step}/{self._total}  {text}  {left:.0f} s left", flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._silent:
            return
        self._bar.write(line) if self._terminal else print(line, flush=True)

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
