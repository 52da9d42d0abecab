"""Saving and restoring train states with Orbax."""

import orbax.checkpoint as ocp
from etils import epath

from fastervit_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a work directory: `checkpoints/STEP`, written in the background."""

    def __init__(self, workdir: epath.PathLike, *, keep: int = 3):
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir) / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def latest_step(self) -> int | None:
        """The newest step saved, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving a state; it may be donated to the next step at once."""
        self._manager.save(step, args=ocp.args.StandardSave(_as_dict(state)))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state onto the shapes and shardings of `abstract`."""
        args = ocp.args.StandardRestore(_as_dict(abstract))
        return TrainState(**self._manager.restore(step, args=args))

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being saved."""
        self._manager.close()


def _as_dict(state: TrainState) -> dict:
    return {field: getattr(state, field) for field in TrainState.__dataclass_fields__}
