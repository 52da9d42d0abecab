"""How far an evaluation is, and how long it will take: a bar on a terminal, else plain lines."""

import sys
import time

import tqdm

_SECONDS_BETWEEN_LINES = 10


class EvaluationProgress:
    """Counts images.

    Args:
        total: images of the evaluation, those of other hosts included.
        hosts: hosts that share them; this one speaks for all.
        title: what is evaluated.
    """

    def __init__(self, total: int, *, hosts: int = 1, title: str = ""):
        terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=total, unit=" images", desc=title or None, disable=not terminal)
        self._lines = not terminal
        self._total = total
        self._hosts = hosts
        self._done = 0
        self._begin = self._last_line = time.monotonic()

    def images_done(self, images: int) -> None:
        """Counts images of this host."""
        before, self._done = self._done, min(self._done + images * self._hosts, self._total)
        self._bar.update(self._done - before)
        now = time.monotonic()
        if self._lines and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            speed = self._done / (now - self._begin)
            left = (self._total - self._done) / speed
            print(
                f"{self._done} of {self._total} images, {speed:.0f} a second, {left:.0f} s left",
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
