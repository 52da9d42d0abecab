"""Small accounts that the loop keeps beside its steps."""

import dataclasses

import jax
import ml_collections

from fastervit_jax.data import TrainLoader
from fastervit_jax.parallel.hosts import sum_over_processes


@dataclasses.dataclass(frozen=True)
class Timetable:
    """When a run logs, saves and evaluates. Steps are counted from 1, epochs from 0.

    Attributes:
        config: of the run.
        epoch_steps: steps of an epoch.
    """

    config: ml_collections.ConfigDict
    epoch_steps: int

    def __post_init__(self):
        if self.total_steps >= 2**31:
            raise ValueError(
                f"Invalid config.epochs={self.config.epochs}: the run would have "
                f"{self.total_steps} steps; expected fewer than 2**31."
            )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        epochs = self.config.epochs + self.config.cooldown_epochs
        return self.config.total_steps or epochs * self.epoch_steps

    @property
    def last_step(self) -> int:
        """The step after which this command stops."""
        stop_after = self.config.stop_after_epochs * self.epoch_steps
        return min(self.total_steps, stop_after or self.total_steps)

    def logs_at(self, step: int) -> bool:
        """Whether the metrics of a step are recorded."""
        return step % self.config.log_every_steps == 0 or step == self.last_step

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows a step."""
        checkpoint = self.config.checkpoint
        epoch, into_epoch = divmod(step, self.epoch_steps)
        every_epochs = checkpoint.every_epochs
        at_epoch = bool(every_epochs) and not into_epoch and epoch % every_epochs == 0
        at_step = bool(checkpoint.every_steps) and step % checkpoint.every_steps == 0
        return at_epoch or at_step or step == self.last_step

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows a step."""
        evaluation = self.config.evaluation
        if evaluation.every_steps:
            at_step = step % evaluation.every_steps == 0 or step == self.total_steps
            return bool(step) and at_step
        epoch, into_epoch = divmod(step, self.epoch_steps)
        every = evaluation.every_epochs
        return not into_epoch and bool(step) and (epoch % every == 0 or step == self.last_step)

    def looks_for_nonfinite_at(self, step: int) -> bool:
        """Whether the steps so far are searched for those that were not finite."""
        every = min(self.config.log_every_steps, self.config.max_skipped_in_a_row)
        return self.logs_at(step) or self.saves_at(step) or step % every == 0


class DamageCount:
    """Damaged images of the whole run, over all hosts and restarts.

    The loader reads ahead of the step. What belongs to a step is known when its batch is taken.

    Attributes:
        total: damaged images met before the last step that was counted, over all hosts.
    """

    def __init__(self, loader: TrainLoader, before: int, *, start: int, batch_size: int):
        """Prepares the loader's account.

        Args:
            loader: of this host.
            before: damaged images of the run before `start`, over all hosts.
            start: number of steps done.
            batch_size: images per step, over all hosts.
        """
        hosts = jax.process_count()
        self.total = self._before = before
        self._loader = loader
        self._here = before // hosts
        drawn_here = start * batch_size // hosts + self._here
        loader.damage.start(drawn_here, self._here)

    def batches(self):
        """Yields each batch with the number of this host's damaged images up to it."""
        for batch in self._loader:
            yield batch, self._loader.damage.count - self._here

    def sum_up(self, damaged_here: int) -> None:
        """Updates `total`. All hosts must call this."""
        self.total = self._before + sum_over_processes(damaged_here)
