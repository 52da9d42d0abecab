"""A profiler trace of chosen steps."""

import contextlib
from collections.abc import Iterator

import jax
from etils import epath


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
        """Surrounds a step; starts the trace at the first one and writes it after the last."""
        if step == self._first:
            jax.profiler.start_trace(self._directory)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if step == self._last and self._first:
            jax.profiler.stop_trace()
            print(
                f"Traced steps {self._first} to {self._last}. To look at it: pip install xprof, "
                f"then xprof --logdir={self._directory}",
                flush=True,
            )
