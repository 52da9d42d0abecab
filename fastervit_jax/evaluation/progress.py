"""Progress of an evaluation and the time left: a bar on a terminal, plain lines in a log."""

import time

from fastervit_jax.data.progress import ProgressBar

_SECONDS_BETWEEN_LINES = 10


class EvaluationProgress:
    """Counts evaluated images and shows the progress.

    Args:
        total: number of images, including those of other hosts.
        hosts: number of hosts that share the images. This host shows the progress of all.
        title: name of the evaluation.
    """

    def __init__(self, total: int, *, hosts: int = 1, title: str = ""):
        self._bar = ProgressBar(total, unit=" images", title=title)
        self._hosts = hosts
        self._last_line = time.monotonic()

    def images_done(self, images: int) -> None:
        """Counts images of this host. The other hosts are assumed to be equally fast."""
        bar = self._bar
        bar.update(min(images * self._hosts, bar.total - bar.done))
        now = time.monotonic()
        if not bar.on_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            bar.say(
                f"{bar.done} of {bar.total} images, {bar.speed():.0f} images/s, "
                f"{bar.seconds_left():.0f} s left"
            )

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
