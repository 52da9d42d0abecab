"""Progress on the screen: a bar on a terminal, plain lines in a log."""

import sys
import time

import tqdm


class ProgressBar:
    """Counts work and shows how much is done.

    On a terminal it draws a tqdm bar on standard error. Otherwise it draws nothing, and `show` and
    `say` print lines to standard output.

    Args:
        total: amount of work.
        unit: unit of the work, as tqdm prints it.
        title: text in front of the bar.
        start: work that was done before.
        visible: False shows nothing at all, for example on all hosts but the first.
        smoothing: smoothing of tqdm's speed, from 0 (mean) to 1 (current).

    Attributes:
        on_terminal: whether a bar is drawn.
        done: work done so far, including `start`.
        total: amount of work.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        title: str = "",
        start: int = 0,
        visible: bool = True,
        smoothing: float = 0.3,
    ):
        self.on_terminal = visible and sys.stderr.isatty()
        self.done, self.total = start, total
        self._start = start
        self._visible = visible
        self._begin = time.monotonic()
        self._bar = tqdm.tqdm(
            initial=start,
            total=total,
            unit=unit,
            desc=title or None,
            disable=not self.on_terminal,
            smoothing=smoothing,
        )

    def update(self, count: int = 1) -> None:
        """Counts work that was done."""
        self.done += count
        self._bar.update(count)

    def speed(self) -> float:
        """Work per second since the beginning."""
        return (self.done - self._start) / max(time.monotonic() - self._begin, 1e-9)

    def seconds_left(self) -> float:
        """Estimated time until everything is done; infinity if nothing was done yet."""
        speed = self.speed()
        return (self.total - self.done) / speed if speed else float("inf")

    def show(self, values: str, line: str) -> None:
        """Shows `values` beside the bar, or prints `line` if there is no bar."""
        if self.on_terminal:
            self._bar.set_postfix_str(values)
        elif self._visible:
            print(line, flush=True)

    def say(self, line: str) -> None:
        """Prints a line. A bar stays below it."""
        if self.on_terminal:
            self._bar.write(line)
        elif self._visible:
            print(line, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
