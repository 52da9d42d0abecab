"""Steps whose loss or gradients were not finite: found, logged, and too many of them ending a run.

The step itself leaves such an update out (`step.py`). Its answer is looked at later, so that the
device never waits for it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import ml_collections
import numpy as np
from etils import epath
from PIL import Image

from fastervit_jax.data import Source
from fastervit_jax.data.order import example_index
from fastervit_jax.training import build

_PICTURES = 64


@dataclass(frozen=True)
class BatchPlace:
    """Where a step's images stand: positions `first` to `last` of an epoch's order."""

    step: int
    epoch: int
    first: int
    last: int

    @classmethod
    def of(cls, step: int, *, epoch_steps: int, batch_size: int) -> "BatchPlace":
        """The place of a step, counted from 1."""
        epoch, into = divmod(step - 1, epoch_steps)
        return cls(step, epoch, into * batch_size, (into + 1) * batch_size - 1)


class SkippedSteps:
    """Counts skipped steps in a row.

    Args:
        limit: so many in a row are too many.
        in_a_row: how many the last ones were when the run started.
    """

    def __init__(self, limit: int, in_a_row: int):
        self._limit = limit
        self._waiting: list[tuple[int, jax.Array]] = []
        self._row: list[int | None] = [None] * in_a_row

    def add(self, step: int, skipped: jax.Array) -> None:
        """Enters a step's answer, which need not have been computed yet."""
        self._waiting.append((step, skipped))

    def found(self, *, newest: bool) -> Iterator[int]:
        """Looks at the answers that wait and yields the steps that were skipped.

        Args:
            newest: also that of the newest step, which waits for the device.

        Raises:
            TooManySkippedError: after the last step of a row that is too long.
        """
        count = len(self._waiting) - (not newest)
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        for (step, _), skipped in zip(ready, jax.device_get([a for _, a in ready]), strict=True):
            if not skipped:
                self._row = []
                continue
            self._row.append(step)
            yield step
            if len(self._row) >= self._limit:
                raise TooManySkippedError(self._row)


class TooManySkippedError(Exception):
    """Too many steps in a row were skipped.

    Attributes:
        steps: the last ones of the row.
    """

    def __init__(self, row: list[int | None]):
        super().__init__(f"{len(row)} steps in a row were not finite")
        self.in_a_row = len(row)
        self.steps = [step for step in row if step is not None]


def write_evidence(
    error: TooManySkippedError,
    config: ml_collections.ConfigDict,
    source: Source,
    workdir: epath.Path,
    place_of: Callable[[int], BatchPlace],
) -> ValueError:
    """Writes where the last batches came from, and this host's images of the very last one.

    They are read anew: a batch is a function of its step. Makes `not_finite/`, with one
    `step_N.json` and, as the device got them, at most 64 images in `step_N.png`.

    Returns:
        The error to raise.
    """
    folder = workdir / "not_finite"
    folder.mkdir(exist_ok=True)
    step = error.steps[-1]
    place = place_of(step)
    with build.train_loader(config, source, step - 1, step) as loader:
        batch = next(loader)
    host = f"_host{jax.process_index()}" if jax.process_count() > 1 else ""
    first = place.first + jax.process_index() * len(batch["label"])
    images = []
    for row, label in enumerate(batch["label"].tolist()):
        position = first + row
        index = example_index(len(source), seed=config.seed, epoch=place.epoch, position=position)
        images.append({"position": position, "image": source[index].key, "label": label})
    batches = [vars(place_of(each)) for each in error.steps]
    evidence = folder / f"step_{step}{host}.json"
    text = json.dumps({"batches": batches, "images": images}, indent=1, ensure_ascii=True)
    evidence.write_text(text + "\n")
    with (folder / f"step_{step}{host}.png").open("wb") as file:
        Image.fromarray(_side_by_side(batch["image"][:_PICTURES])).save(file, format="PNG")
    return ValueError(
        f"The last {error.in_a_row} steps, up to step {step}, had a loss or gradients that are not "
        f"finite and changed nothing. Their batches and the images of the last one are in "
        f"{folder}. The newest checkpoint holds the last good weights: lower "
        f"config.optimizer.learning_rate (with --config.resume.allow_changes), or look at the data."
    )


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] → [rows × H, columns × W, 3]; cells that are left over are black."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    cells[: len(images)] = images
    _, height, width, _ = images.shape
    cells = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, 3)
