"""What a person sees while a run goes on: a bar on a terminal, plain lines in a log."""

import sys
import time

import tqdm


class Progress:
    """Counts steps, measures speed, shows both.

    Args:
        start: steps done before.
        total: steps of the whole run.
        batch_size: images a step.
    """

    def __init__(self, start: int, total: int, batch_size: int):
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            initial=start, total=total, unit="step", disable=not self._terminal, smoothing=0.05
        )
        self._total = total
        self._batch_size = batch_size
        self._begin = self._mark = time.monotonic()
        self._start = self._mark_step = self._step = start

    def step_done(self) -> None:
        """Counts a step."""
        self._step += 1
        self._bar.update()

    def speed(self) -> dict[str, float]:
        """Speed since the last call: `images_per_second`, `step_seconds`."""
        now = time.monotonic()
        seconds = (now - self._mark) / max(self._step - self._mark_step, 1)
        self._mark, self._mark_step = now, self._step
        return {"images_per_second": self._batch_size / seconds, "step_seconds": seconds}

    def show(self, **values: float) -> None:
        """Shows a step's figures."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._terminal:
            self._bar.set_postfix_str(text)
            return
        done = self._step - self._start
        left = (time.monotonic() - self._begin) / max(done, 1) * (self._total - self._step)
        print(f"step {self._step}/{self._total}  {text}  {left:.0f} s left", flush=True)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._bar.write(line) if self._terminal else print(line, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
