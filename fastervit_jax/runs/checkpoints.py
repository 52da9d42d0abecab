"""Save and restore train states with Orbax.

A checkpoint `checkpoints/STEP` has five parts. Each part can be read without the others:

- `model`: parameters and statistics
- `average`: the EMA of parameters and statistics
- `training`: step and optimizer state
- `about`: the run it belongs to, as JSON
- `checksums`: checksums of all other parts, as JSON

Saving runs in the background. Training only waits until the checksums and the copy to the host's
memory are started. Orbax needs milliseconds per array and runs in our own thread, because its
asynchronous saving prepares every array before it returns.
"""

import json
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from fastervit_jax.data.paths import absolute
from fastervit_jax.models.pure_model import Arrays
from fastervit_jax.runs.checksums import checksums, start_checksums, text_checksum
from fastervit_jax.runs.state import TrainState

FORMAT = 2
"""Version of the checkpoint format. Version 1 had no checksums."""

_SET_ASIDE = "damaged_checkpoints"


class DamagedCheckpointError(ValueError):
    """A checkpoint is damaged. The message says what is wrong."""


class Checkpoints:
    """The checkpoints of a work directory, written in the background.

    Attributes:
        scores: scores of checkpoints by step, set by the caller. Higher is better.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep: int | None = None,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        """Opens the checkpoints of a work directory.

        Args:
            workdir: the work directory.
            keep: number of newest checkpoints to keep; None keeps all.
            keep_best: number of checkpoints with the best scores to keep in addition.
            read_only: do not change the directory. Incomplete files of a crash also stay.
        """
        self.scores: dict[int, float] = {}
        logging.get_absl_logger().addFilter(_without_orbax_trace)
        std_logging.getLogger("asyncio").addFilter(_without_orbax_tasks)
        _without_abandoned_writes()
        self._workdir = epath.Path(workdir)
        self._directory = absolute(workdir) / "checkpoints"
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._policy = _NewestAndBest(keep, keep_best)
        # With named processes, Orbax synchronizes without device collectives. Collectives must run
        # in the same order on all processes, and therefore in one thread.
        together = ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count()))
        )
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                create=False,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=False,
                multiprocessing_options=together,
            ),
        )
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: int | None = None
        self._saved: Future | None = None

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, including one that is being saved, or None."""
        return self._manager.latest_step() if self._saving is None else self._saving

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Starts to save a state. Every process must call it.

        The state may be donated to the next step immediately. Until it is written, the host's
        memory has a copy of the state of its devices. A previous save is completed first.

        Args:
            step: number of updates done.
            state: the state.
            about: JSON values to save with the state.

        Raises:
            OSError: the previous save failed. A failure of this save is raised by `check`, `close`
                or the next `save`.
        """
        self.wait()
        sums = start_checksums(_parts(state))
        arrays = _parts(_on_host(state))
        about = {"format": FORMAT, **about}
        self._policy.scores = dict(self.scores)

        def write() -> None:
            json_parts = {
                "about": about,
                "checksums": {**sums(), "about": text_checksum(_canonical(about))},
            }
            args = {name: ocp.args.StandardSave(part) for name, part in arrays.items()}
            args |= {name: ocp.args.JsonSave(part) for name, part in json_parts.items()}
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)

        self._saving, self._saved = step, self._thread.submit(write)

    def check(self) -> None:
        """Raises OSError if the save in the background has failed."""
        if self._saved is not None and self._saved.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the current save is complete.

        Raises:
            OSError: the save failed.
        """
        if self._saved is not None:
            with self._failures_explained(self._saving):
                self._saved.result()

    def restore_newest(
        self, abstract: TrainState, accept: Callable[[int, dict], None]
    ) -> tuple[int, TrainState, dict] | None:
        """Reads the newest checkpoint that is not damaged.

        Newer damaged checkpoints are moved away, and a line is printed for each of them.

        Args:
            abstract: shapes and shardings of the state (see `state.abstract_state`).
            accept: called with a step and its JSON values before the arrays are read. Raises
                ValueError if the checkpoint belongs to another run.

        Returns:
            The step, the state and the JSON values, or None if there is no checkpoint.

        Raises:
            ValueError: `accept` rejected the checkpoint, or all checkpoints are damaged.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                about = self.about(step)
                accept(step, about)
                parts = self._read(step, **_parts(abstract))
            except DamagedCheckpointError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, f"Resuming from step {step}")
            state = TrainState(**parts["model"], ema=parts["average"], **parts["training"])
            chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract)
            return step, state, about
        if all(self._is_empty(step) for step in damaged):
            self._set_aside(damaged, "Starting from the beginning")
            return None
        raise DamagedCheckpointError(
            f"All checkpoints in {self._directory} are damaged. {' '.join(damaged.values())} "
            "Restore them from a backup, or start a new run in another work directory."
        )

    def restore_model(
        self, step: int, params: Arrays, statistics: Arrays, *, ema: bool
    ) -> tuple[Arrays, Arrays]:
        """Reads only parameters and statistics, of the EMA or of the model.

        Args:
            step: step of a checkpoint.
            params: shapes and shardings of the parameters.
            statistics: shapes and shardings of the statistics.
            ema: whether to read the EMA.

        Returns:
            The parameters and the statistics.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged.
        """
        if ema:
            arrays = self._read(step, average={**params, **statistics})["average"]
            return ({name: arrays[name] for name in params}, {n: arrays[n] for n in statistics})
        model = self._read(step, model={"params": params, "statistics": statistics})["model"]
        return model["params"], model["statistics"]

    def about(self, step: int) -> dict:
        """Returns the JSON values of a checkpoint.

        Raises:
            DamagedCheckpointError: they are missing or damaged.
            ValueError: the checkpoint has another format version.
        """
        about = self._json(step, "about")
        if isinstance(about, dict) and about.get("format") != FORMAT and "format" in about:
            raise ValueError(
                f"Invalid format of the checkpoint of step {step} in {self._directory}: expected "
                f"{FORMAT}, got {about['format']}. Use the version of fastervit_jax that wrote it, "
                "or another work directory."
            )
        if self._json(step, "checksums").get("about") != text_checksum(_canonical(about)):
            raise DamagedCheckpointError(_damage(step, "the checksum of `about` differs"))
        return about

    def close(self) -> None:
        """Completes the current save and closes the checkpoints.

        Raises:
            OSError: the save failed.
        """
        self._thread.shutdown()
        self.wait()
        self._manager.close()

    def _json(self, step: int, part: str) -> dict:
        with _damage_explained(step):
            args = ocp.args.Composite(**{part: ocp.args.JsonRestore()})
            value = self._manager.restore(step, args=args)[part]
            if not isinstance(value, dict):
                raise ValueError(f"`{part}` is missing")
            return value

    def _read(self, step: int, **abstract_parts) -> dict:
        """Reads arrays and checks their checksums."""
        args = {name: ocp.args.StandardRestore(part) for name, part in abstract_parts.items()}
        wanted = self._json(step, "checksums")
        problem, parts = "", {}
        try:
            with _damage_explained(step):
                restored = self._manager.restore(step, args=ocp.args.Composite(**args))
                parts = {name: restored[name] for name in abstract_parts}
                if any(part is None for part in parts.values()):
                    raise ValueError("a part is missing")
        except DamagedCheckpointError as error:
            problem = str(error)
        if not problem:
            found = checksums(parts)
            changed = [name for name, value in found.items() if wanted.get(name) != value]
            if changed:
                others = f" and of {len(changed) - 1} more arrays" if len(changed) > 1 else ""
                problem = _damage(step, f"the checksum of {changed[0]}{others} differs")
        if _on_any_process(bool(problem)):
            raise DamagedCheckpointError(
                problem or _damage(step, "another process cannot read its part")
            )
        return parts

    def _is_empty(self, step: int) -> bool:
        return not any((self._directory / str(step)).iterdir())

    def _set_aside(self, damaged: dict[int, str], what_now: str) -> None:
        """Moves damaged checkpoints to another directory and prints a line for each."""
        if not damaged:
            return
        target = self._workdir / _SET_ASIDE
        if jax.process_index() == 0:
            target.mkdir(exist_ok=True)
            for step, problem in damaged.items():
                names = [str(step), *(f"{step}.{count}" for count in range(1, 1000))]
                free = next(name for name in names if not (target / name).exists())
                (self._directory / str(step)).rename(target / free)
                print(f"{problem} It was moved to {target / free}. {what_now}.", flush=True)
        multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()

    @contextmanager
    def _failures_explained(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logging.debug("Saving failed", exc_info=True)
            whole = [each for each in self._manager.all_steps() if each != step]
            kept = (
                f"The checkpoint of step {max(whole)} is complete."
                if whole
                else "There is no earlier checkpoint."
            )
            raise OSError(
                f"Cannot write the checkpoint of step {step} to {self._directory} "
                f"({_first_line(error)}). {kept} Free space there, or fix the problem, and run the "
                "same command again."
            ) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False, because JAX must not be asked about a past step (see `preemption`)."""
        return False


class _NewestAndBest:
    """Tells Orbax to keep the newest and the best checkpoints.

    Others are only deleted after a new checkpoint is complete.

    Attributes:
        scores: scores by step. Higher is better. They do not change during a save.
    """

    def __init__(self, newest: int | None, best: int):
        self._newest, self._best = newest, best
        self.scores: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """Returns for each checkpoint, oldest first, whether to keep it."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        if self._newest is None:
            return [True] * len(steps)
        scored = sorted((s for s in steps if s in self.scores), key=self.scores.__getitem__)
        kept = {*steps[-self._newest :], *(scored[-self._best :] if self._best else ())}
        return [step in kept for step in steps]


def _without_orbax_trace(record) -> bool:
    """Removes the traceback that Orbax logs, because the same error is raised as a message."""
    if "orbax" in record.pathname:
        record.exc_info = None
    return True


def _without_orbax_tasks(record) -> bool:
    """Drops the tracebacks that asyncio logs for other writes when one write fails."""
    message = record.getMessage()
    return not (message.startswith("Task exception was never retrieved") and "orbax" in message)


def _on_host(state: TrainState) -> TrainState:
    """Starts a copy to the host's memory. The state may be donated afterwards."""
    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    kind = "pinned_host" if "pinned_host" in kinds else None
    places = jax.tree.map(lambda array: array.sharding.with_memory_kind(kind), state)
    return jax.device_put(state, places, may_alias=False)


def _without_abandoned_writes() -> None:
    """Suppresses tracebacks of abandoned writes.

    When one write fails, Orbax closes the event loop of the other writes. TensorStore would then
    print a traceback for each of them.
    """
    before = sys.unraisablehook
    if getattr(before, "without_abandoned_writes", False):
        return

    def hook(unraisable) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    hook.without_abandoned_writes = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _parts(state: TrainState) -> dict:
    return {
        "model": {"params": state.params, "statistics": state.statistics},
        "average": state.ema,
        "training": {
            "step": state.step,
            "optimizer": state.optimizer,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        },
    }


def _canonical(about: dict) -> str:
    return json.dumps(about, sort_keys=True)


def _damage(step: int, what: str) -> str:
    return f"The checkpoint of step {step} is damaged: {what}."


@contextmanager
def _damage_explained(step: int) -> Iterator[None]:
    """Replaces errors during reading by DamagedCheckpointError.

    A lack of memory or permission is not replaced, because the checkpoint may be intact.
    """
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedCheckpointError(_damage(step, _first_line(error))) from error


def _first_line(error: Exception) -> str:
    """Returns the first line of the original error."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"


def _on_any_process(condition: bool) -> bool:
    if jax.process_count() == 1:
        return condition
    return bool(np.any(multihost_utils.process_allgather(np.array(condition))))
