"""Steps whose loss or gradients were not finite: count them, report them, end the run at too many.

The step itself skips such an update (`step.py`). The host reads the flag `skipped` some steps
later, so that the device never waits for it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import ml_collections
import numpy as np
from etils import epath
from PIL import Image

from fastervit_jax.data import Source
from fastervit_jax.data.order import example_index
from fastervit_jax.training.progress import Progress
from fastervit_jax.training.reporting import Reporter
from fastervit_jax.training.task import Task

_PICTURES = 64


@dataclass(frozen=True)
class BatchPlace:
    """The images of a step: positions `first` to `last` in the order of an epoch."""

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
    """Counts consecutive skipped steps.

    Args:
        limit: number of consecutive skipped steps that ends the run.
        in_a_row: number of consecutive skipped steps just before the run started.
    """

    def __init__(self, limit: int, in_a_row: int):
        self._limit = limit
        self._waiting: list[tuple[int, jax.Array]] = []
        self._row: list[int | None] = [None] * in_a_row

    def add(self, step: int, skipped: jax.Array) -> None:
        """Adds the flag of a step. The device may still be computing it."""
        self._waiting.append((step, skipped))

    def found(self, *, newest: bool) -> Iterator[int]:
        """Reads the flags added so far, and yields the steps that were skipped.

        Args:
            newest: also read the flag of the newest step, which waits for the device.

        Raises:
            TooManySkippedError: `limit` consecutive steps were skipped.
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
    """Too many consecutive steps were skipped.

    Attributes:
        steps: the numbers of the skipped steps of this run.
    """

    def __init__(self, row: list[int | None]):
        super().__init__(f"{len(row)} steps in a row were not finite")
        self.in_a_row = len(row)
        self.steps = [step for step in row if step is not None]


@dataclass
class NonFiniteReport:
    """Reports skipped steps of a run, and ends it where too many come in a row.

    Attributes:
        task: of the run.
        config: of the run.
        source: the training set.
        workdir: where evidence is written.
        epoch_steps: steps of an epoch.
        skipped: the account of steps.
    """

    task: Task
    config: ml_collections.ConfigDict
    source: Source
    workdir: epath.Path
    epoch_steps: int
    skipped: SkippedSteps

    def report(self, reporter: Reporter, progress: Progress, *, newest: bool) -> None:
        """Records and prints the skipped steps that were not reported before.

        Args:
            reporter: takes a record per step.
            progress: takes a line per step.
            newest: also look at the newest step, which waits for the device.

        Raises:
            ValueError: too many in a row; the message says where the evidence is.
        """
        try:
            for step in self.skipped.found(newest=newest):
                place = self._place_of(step)
                reporter.write(step, **{f"skipped_{k}": v for k, v in vars(place).items()})
                progress.say(
                    f"Skipped step {step}: loss or gradients are not finite. Its images are "
                    f"positions {place.first} to {place.last} of epoch {place.epoch}. Nothing was "
                    f"changed."
                )
        except TooManySkippedError as error:
            raise self._write_evidence(error) from None

    def _place_of(self, step: int) -> BatchPlace:
        return BatchPlace.of(step, epoch_steps=self.epoch_steps, batch_size=self.config.batch_size)

    def _write_evidence(self, error: TooManySkippedError) -> ValueError:
        """Writes where the last batches came from, and this host's images of the very last one.

        They are read anew: a batch is a function of its step. Makes `not_finite/`, with one
        `step_N.json` and, as the device got them, at most 64 images in `step_N.png`.

        Returns:
            The error to raise.
        """
        folder = self.workdir / "not_finite"
        folder.mkdir(exist_ok=True)
        step = error.steps[-1]
        place = self._place_of(step)
        with self.task.train_loader(self.config, self.source, step - 1, step) as loader:
            batch = next(loader)
        host = f"_host{jax.process_index()}" if jax.process_count() > 1 else ""
        first = place.first + jax.process_index() * len(batch["image"])
        images = []
        # Detection does not take the images of an epoch in their order.
        for position in batch.get("position", range(first, first + len(batch["image"]))):
            position = int(position)
            index = example_index(
                len(self.source), seed=self.config.seed, epoch=place.epoch, position=position
            )
            example = self.source[index]
            images.append({"position": position, "image": example.key})
            if hasattr(example, "label"):  # of classification
                images[-1]["label"] = example.label
        batches = [vars(self._place_of(each)) for each in error.steps]
        evidence = folder / f"step_{step}{host}.json"
        text = json.dumps({"batches": batches, "images": images}, indent=1, ensure_ascii=True)
        evidence.write_text(text + "\n")
        with (folder / f"step_{step}{host}.png").open("wb") as file:
            Image.fromarray(_side_by_side(batch["image"][:_PICTURES])).save(file, format="PNG")
        return ValueError(
            f"Stopped: the last {error.in_a_row} steps, up to step {step}, had a loss or gradients "
            f"that are not finite. They changed nothing. {folder} lists their batches and shows "
            f"the images of the last one. The newest checkpoint holds the last good weights. Lower "
            f"config.optimizer.learning_rate (with --config.resume.allow_changes), or look at the "
            f"data."
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
