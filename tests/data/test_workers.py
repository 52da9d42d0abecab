"""Worker processes: what happens when one dies, fails, or is no longer wanted."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import open_source, train_batches
from fastervit_jax.data.workers import StepIterator, discard, new_array


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class Steps:
    """Large arrays, their names in a log, with an accident at one step."""

    def __init__(self, log, accident=None, at=4):
        self.log, self.accident, self.at = log, accident, at

    def __call__(self, step):
        array = new_array((50_000,), np.int64, shared=True)
        array[:] = step
        with open(self.log, "a") as log:
            log.write(f"{step} {array.shm.name}\n")
        if step == self.at and self.accident:
            Path(f"{self.log}.accident").write_text(str(time.time()))
            discard(array)
            if self.accident == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.accident == "unpicklable":
                raise UnpicklableError("one", "two")
            raise ValueError("step 4 went wrong")
        return {"step": array, "pid": os.getpid()}


def children():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "arrays"


@pytest.fixture
def closed_by_the_collector(monkeypatch):
    """Shared memory that garbage collection has closed, perhaps while Grain's thread did so."""
    names = []
    finalize = SharedMemory.__del__

    def spy(memory):
        if memory._fd >= 0:
            names.append(memory.name)
        finalize(memory)

    monkeypatch.setattr(SharedMemory, "__del__", spy)
    return names


def left_in_memory(log):
    """Steps whose arrays are still in shared memory."""
    arrays = [line.split() for line in log.read_text().splitlines()]
    gc.collect()
    return [int(step) for step, name in arrays if Path("/dev/shm", name.strip("/")).exists()]


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_arrays_come_in_order_and_leave_nothing_behind(log, closed_by_the_collector):
    pids = set()
    with StepIterator(Steps(log), 3, 12, 2) as steps:
        for expected, element in enumerate(steps, start=3):
            assert hasattr(element["step"], "shm")
            assert (element["step"] == expected).all()
            pids.add(element["pid"])
    assert expected == 11 and len(pids) == 2 and os.getpid() not in pids
    wait_until(lambda: left_in_memory(log) == [11])
    del element
    wait_until(lambda: not children() and not left_in_memory(log))
    assert not closed_by_the_collector


@pytest.mark.parametrize(
    ("accident", "error", "says"),
    [
        ("killed", RuntimeError, "worker process of the loader died.*exit code -9.*fewer workers"),
        ("raises", ValueError, "step 4 went wrong"),
        ("unpicklable", RuntimeError, "UnpicklableError: one and two"),
    ],
)
def test_an_accident_in_a_worker_is_an_error_within_seconds(
    log, accident, error, says, closed_by_the_collector
):
    steps = StepIterator(Steps(log, accident), 0, 10, 2)
    seen, element = [], None
    with pytest.raises(error, match=says):
        for element in steps:
            seen.append(int(element["step"][0]))
    # Seconds; a hang would be for ever, and machines that run tests may be busy.
    assert time.time() - float(Path(f"{log}.accident").read_text()) < 30
    # A killed worker may take along what it had not yet handed over.
    assert seen == list(range(4))[: len(seen)] and (len(seen) == 4 or accident == "killed")
    assert next(steps, "end") == "end"
    del element
    # That is freed when the run ends, by Python's resource tracker.
    lost = set(range(len(seen), 10)) if accident == "killed" else set()
    wait_until(lambda: not children() and set(left_in_memory(log)) <= lost)
    assert not closed_by_the_collector


def test_without_workers_errors_are_the_same_and_can_be_debugged(log):
    with pytest.raises(ValueError, match="step 4 went wrong") as raised:
        list(StepIterator(Steps(log, "raises"), 0, 10, 0))
    assert raised.traceback[-1].locals["step"] == 4


def test_closing_early_stops_the_workers(log):
    steps = StepIterator(Steps(log), 0, 1000, 1)
    next(steps)
    assert children()
    steps.close()
    wait_until(lambda: not children() and not left_in_memory(log))
    assert next(steps, "end") == "end"


def test_workers_end_with_a_killed_parent(tmp_path):
    """SIGKILL leaves the parent no time to stop them. Runs unparsed absl flags, too."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, numpy as np
            from fastervit_jax.data.workers import StepIterator

            def make(step):
                return {"array": np.full(50_000, step), "pid": os.getpid()}

            if __name__ == "__main__":
                steps = StepIterator(make, 0, 100, 2)
                first, second = next(steps), next(steps)
                print(first["pid"], second["pid"], first["array"].shm.name, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    *pids, array = done.stdout.decode().split()
    left = [Path("/proc", pid) for pid in pids] + [Path("/dev/shm", array.strip("/"))]
    wait_until(lambda: len(left) == 3 and not any(path.exists() for path in left))


def memory_mb(pid):
    """A process's own memory, without libraries and what is shared."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(rollup[rollup.index("Anonymous:") + 1]) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_over_fifty_thousand_images(numbered_folder):
    source = open_source(f"folder:{numbered_folder}")
    transform = TrainTransform(64, rand_augment="rand-m9-mstd0.5-inc1")
    steps = 50_000 // 50
    options = {"batch_size": 50, "seed": 0, "num_steps": steps, "num_workers": 2}
    memory = []
    with train_batches(source, transform, **options) as loader:
        for step, _ in enumerate(loader, start=1):
            workers = [process.pid for process in children()]
            if step % (steps // 10) == 0 and len(workers) == 2:
                memory.append([memory_mb(pid) for pid in [os.getpid(), *workers]])
    assert step == steps and len(memory) >= 9
    growth = np.array(memory[-1]) - np.array(memory[0])
    assert (growth < 5).all(), memory
