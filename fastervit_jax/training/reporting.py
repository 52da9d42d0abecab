"""Records of a run: `metrics.jsonl`, TensorBoard events, `curves.png`."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import jax
from absl import logging
from etils import epath

from fastervit_jax.data.paths import is_remote, write_whole
from fastervit_jax.training.task import Panel

_REMOTE_EVERY = 30
"""Seconds between two versions of a file in a bucket, which accepts one per second at most."""

_BOARD_EVERY = 120
"""Seconds between two flushes of TensorBoard events. In a bucket, each sends all events again."""


class Reporter:
    """Writes records to `metrics.jsonl`, TensorBoard and, if asked for, Weights & Biases.

    `metrics.jsonl` has one JSON object per line. A resumed run drops the records of later steps, so
    that every step is recorded once. Only the first process writes. A file in a bucket cannot be
    appended to: it is written again every half minute, and by `flush`.
    """

    def __init__(self, workdir: epath.Path, *, resume_step: int, wandb_project: str = ""):
        """Opens the files.

        Args:
            workdir: the work directory.
            resume_step: records of later steps are dropped.
            wandb_project: also log to this Weights & Biases project.

        Raises:
            ImportError: Weights & Biases is asked for but not installed.
        """
        self._path = workdir / "metrics.jsonl"
        self._records = [r for r in read_metrics(workdir) if r["step"] <= resume_step]
        self._file: IO[str] | None = None
        self._board: _Board | None = None
        self._wandb: Any = None
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._wandb = _start_wandb(wandb_project, workdir)
        self._write_all()
        if not is_remote(workdir):
            self._file = self._path.open("a")
        self._board = _Board(workdir, purge_step=resume_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Records values at a step.

        Raises:
            OSError: the work directory cannot be written to.
        """
        record = {"step": step, **{key: _number(value) for key, value in values.items()}}
        self._records.append(record)
        if not self._writes:
            return
        try:
            if self._file is not None:
                self._file.write(_line(record))
                self._file.flush()
            elif time.monotonic() - self._written > _REMOTE_EVERY:
                self._write_all()
            if self._board is not None:
                self._board.write(record)
        except OSError as error:
            raise OSError(
                f"Cannot write to {self._path.parent}: {error.strerror or error}. Free space or "
                f"repair the file system, then run the same command again to resume."
            ) from None
        if self._wandb:
            self._wandb.log(record, step=step)

    def flush(self) -> None:
        """Makes sure that all records are written."""
        if self._writes and self._file is None:
            self._write_all()

    def _write_all(self) -> None:
        write_whole(self._path, "".join(_line(record) for record in self._records))
        self._written = time.monotonic()

    def has(self, step: int, key: str) -> bool:
        """Whether there is a value at a step."""
        return any(record["step"] == step and key in record for record in self._records)

    def scores(self, metric: str) -> dict[int, float]:
        """The score of each evaluation, by step. Higher is better.

        Args:
            metric: `top1`, `top5` or `loss`.
        """
        sign = -1 if metric == "loss" else 1
        key = f"validation_{metric}"
        return {r["step"]: sign * r[key] for r in self._records if r.get(key) is not None}

    def close(self) -> None:
        """Finishes the files."""
        if self._writes:
            with contextlib.suppress(OSError):  # `write` has raised it before
                self.flush()
                if self._file is not None:
                    self._file.close()
            with contextlib.suppress(OSError):
                if self._board is not None:
                    self._board.close()
        if self._wandb:
            self._wandb.finish()


class _Board:
    """A file of TensorBoard events, written in the caller's thread.

    tensorboardX's SummaryWriter writes in a thread of its own, where a full disk ends in a
    traceback instead of an exception for the caller.
    """

    def __init__(self, workdir: epath.Path, *, purge_step: int):
        """Opens the file. TensorBoard ignores events of older files from `purge_step` on."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._events = EventsWriter(str(workdir / "events"))
        self._write(purge_step, file_version="brain.Event:2")
        self._write(purge_step, session_log=SessionLog(status=SessionLog.START))
        self._flushed = -math.inf

    def write(self, record: dict) -> None:
        """Writes a record's values; raises OSError."""
        from tensorboardX.summary import scalar

        for key, value in record.items():
            if key != "step" and value is not None:
                self._write(record["step"], summary=scalar(key, value))
        if time.monotonic() - self._flushed > _BOARD_EVERY:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Finishes the file; raises OSError."""
        self._events.close()

    def _write(self, step: int, **content) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


def _start_wandb(project: str, workdir: epath.Path):
    """A Weights & Biases run named after the directory, so that it can be resumed; or None."""
    if not project:
        return None
    try:
        import wandb
    except ImportError:
        raise ImportError(
            f"config.wandb_project={project!r} needs Weights & Biases: pip install wandb."
        ) from None
    local = None if is_remote(workdir) else str(workdir)
    return wandb.init(
        project=project, name=workdir.name, id=workdir.name, resume="allow", dir=local
    )


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """The records of a run, oldest first.

    A last line that a crash cut off is ignored. A damaged line is ignored with a warning.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().decode(errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records += [record] if isinstance(record["step"], int) else []
        except (json.JSONDecodeError, KeyError, TypeError):
            if number < len(lines):
                logging.warning("%s: ignored line %d, which is not a record.", path, number)
    return records


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _number(value) -> int | float | None:
    """A JSON number; null for values that are not finite, because JSON has no NaN."""
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def draw_curves(workdir: epath.PathLike, panels: Sequence[Panel], headline: str) -> None:
    """Draws `curves.png` from `metrics.jsonl`.

    Args:
        workdir: the work directory.
        panels: what to draw, at most four.
        headline: the metric of the evaluation whose best value stands in the title.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_metrics(workdir)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        for key, label in lines.items():
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, label=label, marker="." if len(points) < 60 else None)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines and len(lines) > 1:
            axis.legend()
    key = f"validation_{headline}"
    best = max((r[key] for r in records if r.get(key)), default=None)
    if best is not None:
        title = f"{Path(str(workdir)).name}: best validation {headline} {best:.2%}"
        figure.suptitle(title, parse_math=False)
    _save(figure, epath.Path(workdir) / "curves.png")
    plt.close(figure)


def _save(figure, path: epath.Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
