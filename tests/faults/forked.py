"""train.py in processes that are forked after the imports, so that a start takes a second.

The parent must start no thread and ask JAX for no device: a forked process could not use either.
What trains is a small network of two layers. Everything else is the real trainer: `train.py` with
its flags, loop, step, loader, checkpoints, records, lock and signals.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot
import tensorboardX.event_file_writer
import tensorboardX.summary  # noqa: F401
from flax import nnx
from jax._src import compiler, distributed

import fastervit_jax.commands.train
import fastervit_jax.training.loop  # noqa: F401
from fastervit_jax.models.layers import BatchNorm, Dropout, Linear
from fastervit_jax.training import tasks
from fastervit_jax.training.classification import Classification
from tests.small.run import ROOT

LIMIT = 300
"""Seconds after which a process counts as hung."""


class Hung(Exception):
    """A process did not end in time."""


class _Network(nnx.Module):
    """Two layers, a batch norm and dropout, in place of a FasterViT that takes seconds to trace."""

    def __init__(self, num_classes: int, rngs):
        self.norm = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
        self.expand = Linear(3, 16, dtype=jnp.float32, rngs=rngs)
        self.drop = Dropout(0.2)
        self.head = Linear(16, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        x = self.norm(images[:, ::8, ::8]).mean((1, 2))
        return self.head(self.drop(jnp.tanh(self.expand(x)), rngs=rngs))


class _SmallClassification(Classification):
    """Classification with the small network."""

    def network(self, config):
        return nnx.eval_shape(lambda: self.initial_network(config))

    def initial_network(self, config):
        return _Network(config.model.num_classes, nnx.Rngs(config.seed))

    def draw(self, source, evaluation, path):
        """Nothing: nobody looks at it, and it takes as long as the rest of the run."""


def prepare(cache: Path) -> None:
    """Sets up JAX for the processes to come. Compiled programs are kept in `cache`."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    matplotlib.use("Agg")
    for name, value in {
        "platforms": "cpu",
        "cpu_collectives_implementation": "gloo",
        "compilation_cache_dir": str(cache),
        "persistent_cache_min_compile_time_secs": 0,
        "persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(f"jax_{name}", value)
    gc.freeze()  # every process would otherwise look through the parent's objects


class Process:
    """A process that runs train.py; its output goes to a file.

    Attributes:
        pid: number of the process, and of its group.
        log: the file.
    """

    def __init__(self, command: list[str], log: Path):
        """Starts it. `command` is that of `killed_run.command`."""
        self.log = log
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(lambda: _train(command[1:], log))

    def poll(self) -> int | None:
        """The exit code, −N after signal N; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, limit: float = LIMIT) -> int:
        """Waits for its end; returns the exit code.

        Raises:
            Hung: it took longer. The process is killed.
        """
        end = time.monotonic() + limit
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.end()
                raise Hung(f"process did not end within {limit:.0f} s")
            time.sleep(0.005)
        return code

    def send(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def children(self) -> list[int]:
        """The data workers: child processes that `multiprocessing` has spawned."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and b"spawn_main" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
            except (OSError, IndexError, ValueError):
                continue  # it has just ended
        return sorted(found)

    def left(self, seconds: float = 10) -> bool:
        """Whether any process of the group is left after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> None:
        """Kills the process and its group."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.send(signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.005)

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a forked process, which may use JAX. It must fit in JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:

        def answer() -> int:
            with os.fdopen(writer, "w") as file:
                json.dump(function(), file)
            return 0

        os.close(reader)
        _run(answer)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    if not text:
        raise RuntimeError("The child process failed; its error is printed above.")
    return json.loads(text)


def _run(function: Callable[[], int]) -> None:
    """Runs a function in a child, which then ends without the parent's own ending."""
    code = 1
    try:
        code = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _as_first_process(write: Callable) -> Callable:
    """Makes JAX keep what the second process compiles: it keeps the programs of the first only."""

    def written(*arguments) -> None:
        state = distributed.global_state
        number, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = number

    return written


def _train(arguments: list[str], log: Path) -> int:
    os.setpgid(0, 0)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(ROOT)
    sys.argv = arguments
    if not any(argument == "--process_id=0" for argument in arguments):
        compiler._cache_write = _as_first_process(compiler._cache_write)
    tasks.TASKS["classification"] = _SmallClassification
    code: Any = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    # What Python does at its end: `os._exit` leaves it out.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code
