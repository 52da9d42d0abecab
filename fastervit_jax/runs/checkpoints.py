"""Saving and restoring train states with Orbax.

A checkpoint `checkpoints/STEP` has five parts, so that each can be read without the others: `model`
(parameters and statistics), `average` (their EMA), `training` (step and optimizer),
`about` (what it belongs to, as JSON) and `checksums` (of all the others, as JSON).

Saving holds the training up only while its checksums and a copy in the host's memory are started.
All that Orbax does, milliseconds an array, happens in a thread of ours: Orbax's own asynchronous
saving prepares every array before it returns.
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
"""Version of what is written; 1 had no checksums."""

_SET_ASIDE = "damaged_checkpoints"


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was written; the message says what is amiss."""


class Checkpoints:
    """The checkpoints of a work directory, written in the background.

    Attributes:
        scores: how good the state of a step is, by step, higher is better; who writes them decides.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        keep: int | None = None,
        keep_best: int = 0,
        read_only: bool = False,
    ):
        """Opens them.

        Args:
            workdir: the work directory.
            keep: how many of the newest to keep; None keeps all.
            keep_best: how many of those with the best scores to keep beside them.
            read_only: change nothing in the directory, what a crash left included.
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
        # Named, the processes wait for each other without the devices, whose collectives must come
        # in the same order everywhere and so from one thread.
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
        """The newest step saved or being saved, or None."""
        return self._manager.latest_step() if self._saving is None else self._saving

    def save(self, step: int, state: TrainState, about: dict[str, Any]) -> None:
        """Starts saving a state; it may be donated to the next step at once.

        Until it is written, the host's memory holds a copy of what its devices hold of the state.
        A save still under way is waited for first.

        Args:
            step: updates done.
            state: to be saved; every process must call this.
            about: JSON values to be saved with it.

        Raises:
            OSError: the save before it failed; of this one, `check`, `close` or the next will say.
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
        """Raises OSError where the save in the background has failed."""
        if self._saved is not None and self._saved.done():
            self.wait()

    def wait(self) -> None:
        """Waits until what is being saved is written.

        Raises:
            OSError: it could not be saved.
        """
        if self._saved is not None:
            with self._failures_explained(self._saving):
                self._saved.result()

    def restore_newest(
        self, abstract: TrainState, accept: Callable[[int, dict], None]
    ) -> tuple[int, TrainState, dict] | None:
        """Reads the newest checkpoint that is whole.

        Newer ones that are not are set aside, with a line that says so, once a good one is found.

        Args:
            abstract: shapes and shardings of the state (`state.abstract_state`).
            accept: called with a step and what was saved beside its arrays, before these are read;
                raises ValueError where it belongs to something else.

        Returns:
            The step, its state and what was saved beside it; None where nothing was saved yet.

        Raises:
            ValueError: it is refused, or there are checkpoints and none is whole.
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
            self._set_aside(damaged, f"going on from step {step}")
            state = TrainState(**parts["model"], ema=parts["average"], **parts["training"])
            return step, state, about
        if all(self._is_empty(step) for step in damaged):
            self._set_aside(damaged, "starting anew")
            return None
        raise DamagedCheckpointError(
            f"No checkpoint in {self._directory} is whole: {' '.join(damaged.values())} "
            f"Restore them from a copy, or start anew in another work directory."
        )

    def restore_model(
        self, step: int, params: Arrays, statistics: Arrays, *, ema: bool
    ) -> tuple[Arrays, Arrays]:
        """Reads parameters and statistics alone, of the EMA or of the model itself.

        Args:
            step: a saved step.
            params: shapes and shardings of the parameters.
            statistics: the same of the statistics.
            ema: whether to read the EMA.

        Raises:
            DamagedCheckpointError: what comes back is not what was saved.
        """
        if ema:
            arrays = self._read(step, average={**params, **statistics})["average"]
            return ({name: arrays[name] for name in params}, {n: arrays[n] for n in statistics})
        model = self._read(step, model={"params": params, "statistics": statistics})["model"]
        return model["params"], model["statistics"]

    def about(self, step: int) -> dict:
        """What was saved beside the arrays.

        Raises:
            DamagedCheckpointError: it is missing or not what was saved.
            ValueError: it was written in another format than this version's.
        """
        about = self._json(step, "about")
        if isinstance(about, dict) and about.get("format") != FORMAT and "format" in about:
            raise ValueError(
                f"The checkpoint of step {step} in {self._directory} has format "
                f"{about['format']}, and this version of fastervit_jax reads format {FORMAT}: "
                f"use the version that wrote it, or another work directory."
            )
        if self._json(step, "checksums").get("about") != text_checksum(_canonical(about)):
            raise DamagedCheckpointError(_damage(step, "`about` is not what was saved"))
        return about

    def close(self) -> None:
        """Finishes what is being saved.

        Raises:
            OSError: it could not be saved.
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
        """Reads arrays and compares their checksums."""
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
                others = f" and {len(changed) - 1} more arrays are" if len(changed) > 1 else " is"
                problem = _damage(step, f"{changed[0]}{others} not what was saved")
        if _on_any_process(bool(problem)):
            raise DamagedCheckpointError(
                problem or _damage(step, "another process cannot read its part")
            )
        return parts

    def _is_empty(self, step: int) -> bool:
        return not any((self._directory / str(step)).iterdir())

    def _set_aside(self, damaged: dict[int, str], what_now: str) -> None:
        """Moves checkpoints out of the way, and says so."""
        if not damaged:
            return
        target = self._workdir / _SET_ASIDE
        if jax.process_index() == 0:
            target.mkdir(exist_ok=True)
            for step, problem in damaged.items():
                names = [str(step), *(f"{step}.{count}" for count in range(1, 1000))]
                free = next(name for name in names if not (target / name).exists())
                (self._directory / str(step)).rename(target / free)
                print(f"{problem} It is set aside as {target / free}: {what_now}.", flush=True)
        multihost_utils.sync_global_devices("checkpoints set aside")
        self._manager.reload()

    @contextmanager
    def _failures_explained(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logging.debug("Saving failed", exc_info=True)
            whole = [each for each in self._manager.all_steps() if each != step]
            kept = f"The one of step {max(whole)} is whole" if whole else "There is none before it"
            raise OSError(
                f"The checkpoint of step {step} could not be written to {self._directory} "
                f"({_first_line(error)}). {kept}: make room there, or repair what is amiss, and "
                f"start the same command again."
            ) from error


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: JAX must not be asked for a step that training has left behind (`preemption`)."""
        return False


class _NewestAndBest:
    """Which checkpoints Orbax keeps: the newest and the best. Those before are only deleted once a
    new one is whole.

    Attributes:
        scores: by step, higher is better; not changed while a save is under way.
    """

    def __init__(self, newest: int | None, best: int):
        self._newest, self._best = newest, best
        self.scores: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
        """One answer a checkpoint; they come oldest first."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        if self._newest is None:
            return [True] * len(steps)
        scored = sorted((s for s in steps if s in self.scores), key=self.scores.__getitem__)
        kept = {*steps[-self._newest :], *(scored[-self._best :] if self._best else ())}
        return [step in kept for step in steps]


def _without_orbax_trace(record) -> bool:
    """Orbax logs the trace of an error that is raised here too, where it becomes a sentence."""
    if "orbax" in record.pathname:
        record.exc_info = None
    return True


def _without_orbax_tasks(record) -> bool:
    """Where one write fails, asyncio logs a trace for the others that fail with it."""
    message = record.getMessage()
    return not (message.startswith("Task exception was never retrieved") and "orbax" in message)


def _on_host(state: TrainState) -> TrainState:
    """A copy in the memory of the host; it is under way when this returns, and the state may be
    donated."""

    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    kind = "pinned_host" if "pinned_host" in kinds else None
    places = jax.tree.map(lambda array: array.sharding.with_memory_kind(kind), state)
    return jax.device_put(state, places, may_alias=False)


def _without_abandoned_writes() -> None:
    """Where one write fails, Orbax closes the loop in which the others would have ended, and
    TensorStore would print a trace for each of them."""
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
    """Turns whatever reading trips over into DamagedCheckpointError; but not a lack of memory or of
    permission, which says nothing about the checkpoint."""
    try:
        yield
    except (MemoryError, PermissionError):
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise DamagedCheckpointError(_damage(step, _first_line(error))) from error


def _first_line(error: Exception) -> str:
    """What an error says first, of the one that began it."""
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
