"""Saving and restoring train states with Orbax.

A checkpoint `checkpoints/STEP` has four parts, so that each can be read without the others: `model`
(parameters and statistics), `average` (their moving average), `training` (step and optimizer) and
`about` (what it belongs to, as JSON).
"""

import orbax.checkpoint as ocp
from etils import epath

from fastervit_jax.models.functional import Arrays
from fastervit_jax.training.state import TrainState

_FORMAT = 1


class Checkpoints:
    """The checkpoints of a work directory, written in the background."""

    def __init__(self, workdir: epath.PathLike, *, keep: int | None = None, about=None):
        """Opens them.

        Args:
            workdir: the work directory.
            keep: how many of the newest to keep; None keeps all.
            about: JSON values saved with each checkpoint.
        """
        self._about = {"format": _FORMAT, **(about or {})}
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).resolve() / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving a state; it may be donated to the next step at once."""
        parts = {name: ocp.args.StandardSave(part) for name, part in _parts(state).items()}
        about = ocp.args.JsonSave(self._about)
        self._manager.save(step, args=ocp.args.Composite(**parts, about=about))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state onto the shapes and shardings of `abstract` (`state.abstract_state`)."""
        parts = self._read(step, **_parts(abstract))
        return TrainState(**parts["model"], average=parts["average"], **parts["training"])

    def restore_model(
        self, step: int, params: Arrays, statistics: Arrays, *, average: bool
    ) -> tuple[Arrays, Arrays]:
        """Reads parameters and statistics alone, of the moving average or of the model itself.

        Args:
            step: a saved step.
            params: shapes (and shardings) of the parameters.
            statistics: the same of the statistics.
            average: whether to read the moving average.
        """
        if average:
            arrays = self._read(step, average={**params, **statistics})["average"]
            return ({name: arrays[name] for name in params}, {n: arrays[n] for n in statistics})
        model = self._read(step, model={"params": params, "statistics": statistics})["model"]
        return model["params"], model["statistics"]

    def about(self, step: int) -> dict:
        """What was saved beside the arrays."""
        return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
            "about"
        ]

    def keep_about(self, step: int) -> dict:
        """Goes on saving what was saved beside the arrays at a step, and returns it."""
        self._about = self.about(step)
        return self._about

    def close(self) -> None:
        """Finishes what is being saved."""
        self._manager.close()

    def _read(self, step: int, **abstract_parts):
        args = {name: ocp.args.StandardRestore(part) for name, part in abstract_parts.items()}
        return self._manager.restore(step, args=ocp.args.Composite(**args))


def _parts(state: TrainState) -> dict:
    return {
        "model": {"params": state.params, "statistics": state.statistics},
        "average": state.average,
        "training": {
            "step": state.step,
            "optimizer": state.optimizer,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        },
    }
