"""Disturbs tiny runs of train.py at random for as long as it is let, and compares how they end.

    python -m tests.faults.kills --seconds=3600 --workdir=DIR --seed=0 --record=kills.json

Every run is disturbed several times, started again each time, and continued to its end. It must end
with the state of an undisturbed run, to the bit, and with its records, each once. Each disturbance
must also be answered as the guides say: a sentence, an exit code, no hanging, nothing left behind.
The record counts disturbances by kind, and holds every run that was not as it must be. Another call
adds its record to the same file.
`--run=N` repeats the run of that number, with the same seed.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from fastervit_jax.data.paths import write_whole
from fastervit_jax.runs.resume_check import code_version
from tests.faults import forked
from tests.faults.forked import Hung, Process
from tests.small import killed_run

CHANGES = {
    "alone": {},
    # An evaluation starts workers of its own, which import for seconds.
    "workers": {"evaluation__every_epochs": 2},
    "two": {"mesh__data": 2},
}
STEPS, EPOCH_STEPS = killed_run.STEPS, killed_run.EPOCH_STEPS
DISK = 16 * 2**20
"""Bytes of the disk that fills up."""

KINDS = "alone,workers,alone,two,alone"
"""Kinds of runs in turn: one process; with data workers; two processes."""


class Wrong(Exception):
    """A disturbance was not answered as it must be."""


def main() -> None:
    """Runs until the time is over."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=600, help="how long")
    arguments.add_argument("--workdir", type=Path, required=True, help="an empty directory")
    arguments.add_argument("--seed", type=int, default=0, help="of everything random")
    arguments.add_argument("--record", type=Path, help="JSON file; default: in the directory")
    arguments.add_argument("--kinds", default=KINDS, help="of runs, in turn")
    arguments.add_argument("--run", type=int, help="only the run of this number")
    options = arguments.parse_args()
    root = options.workdir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    kinds = options.kinds.split(",")
    numbers = range(10**9) if options.run is None else [options.run]
    with _disk(root) as full:
        record = disturb(root, options.seed, options.seconds, kinds, numbers, full, options.record)
    print(json.dumps(record, indent=2))


def disturb(root, seed, seconds, kinds, numbers, full, path=None) -> dict:
    """Disturbs runs of these numbers until the time is over; returns the record."""
    begin = time.monotonic()
    forked.prepare(root / "cache")
    if not (root / "data").exists():
        killed_run.write_images(root / "data")
    usual = {}
    for kind in sorted(set(kinds)):
        whole = root / f"whole_{kind}"
        for _ in range(2):  # the first time, programs are compiled
            shutil.rmtree(whole, ignore_errors=True)
            started = time.monotonic()
            processes = _start(whole, root, kind, CHANGES[kind])
            codes = [process.wait() for process in processes]
            assert codes == [0] * len(codes), processes[0].output()
            usual[kind] = time.monotonic() - started
    counts: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    starts, faults = 0, []
    record: dict[str, Any] = {}
    path = path or root / "kills.json"
    earlier = json.loads(path.read_text()) if path.exists() else []
    for number in numbers:
        kind = kinds[number % len(kinds)]
        run = Run(root, kind, random.Random(f"{seed} {number}"), full, usual[kind])
        problem = run.problem()
        runs[kind] += 1
        counts.update(run.done)
        missed.update(run.missed)
        starts += run.starts
        if problem:
            faults.append({"run": number, "kind": kind, "problem": problem, "events": run.events})
            kept = root / "faults" / f"{seed}_{number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(run.workdir, kept / "run", symlinks=True)
            for log in root.glob("process_*.log"):
                shutil.copy(log, kept)
        record = {
            "command": (
                f"python -m tests.faults.kills --seconds={seconds:.0f} --seed={seed} "
                f"--kinds={','.join(kinds)} --workdir=DIR"
            ),
            "repeat": "the same command with --run=NUMBER",
            "full_disk": "a file system of 16 MiB" if full else "a limit on sizes of files",
            "seconds": round(time.monotonic() - begin),
            "disturbances": sum(counts.values()),
            "by_kind": dict(sorted(counts.items())),
            "too_late": dict(sorted(missed.items())),
            "runs": dict(sorted(runs.items())),
            "starts": starts,
            "unequal": faults,
            "versions": code_version(),
            "machine": f"{len(os.sched_getaffinity(0))} core(s)",
        }
        write_whole(path, json.dumps([*earlier, record], indent=2) + "\n")
        said = problem or "equal"
        print(f"run {number} ({kind}): {', '.join(run.done)}: {said}", flush=True)
        if time.monotonic() - begin > seconds:
            break
    return record


class Run:
    """One run, disturbed and continued to its end.

    Attributes:
        done: kinds of the disturbances so far.
        missed: kinds of those that came after the end of the run.
        events: what happened, in order.
        starts: how many processes were started.
    """

    def __init__(self, root: Path, kind: str, rng: random.Random, full: bool, usual: float):
        """Prepares it.

        Args:
            root: directory of the data, the undisturbed runs and the disk.
            kind: of `KINDS`.
            rng: draws what happens, and when.
            full: whether `root / "disk"` is a file system of its own.
            usual: seconds that an undisturbed run takes.
        """
        self.workdir = root / "disk" / "run"
        self.done: list[str] = []
        self.missed: list[str] = []
        self.events: list[str] = []
        self.starts = 0
        self._root, self._kind, self._rng = root, kind, rng
        self._full, self._usual = full, usual
        self._records_cut = False
        self._backups: dict[Path, bytes] = {}

    def problem(self) -> str:
        """Does it; says what was not as it must be, or nothing."""
        shutil.rmtree(self.workdir, ignore_errors=True)
        for log in self._root.glob("process_*.log"):
            log.unlink()
        shared = _shared_memory()
        try:
            ended = False
            for disturbance in self._disturbances():
                ended = self._disturbed(disturbance)
                if ended:
                    break
            while not ended:
                ended = self._undisturbed()
        except (Wrong, Hung) as error:
            return str(error)
        left: set[str] = set()
        for _ in range(50 if self._kind == "workers" else 0):
            left = _shared_memory() - shared
            if not left:
                break
            time.sleep(0.2)  # it may be that of another program, which is about to use it
        if left:
            return f"shared memory is left behind: {sorted(left)}"
        whole = self._root / f"whole_{self._kind}"
        differing = forked.in_child(
            functools.partial(_differences, self.workdir, whole, self._records_cut)
        )
        return f"differs from the undisturbed run: {differing}" if differing else ""

    def _disturbances(self) -> list[Callable[[list[Process]], None] | str]:
        """What will happen: before the starts (names of damage) and during them (functions)."""
        if self._kind == "workers":
            return [self._kill_worker] * 3
        if self._kind == "two":
            return [self._one_of_two] * 3
        stops = [self._kill, self._terminate, self._stop_and_kill, self._fill_disk]
        damage = ["truncated file", "flipped bit"] * 2
        self._rng.shuffle(stops)
        self._rng.shuffle(damage)
        return [each for pair in zip(stops, damage, strict=True) for each in pair]

    def _disturbed(self, disturbance) -> bool:
        """Carries out a disturbance; whether the run has ended."""
        if isinstance(disturbance, str):
            self._damage(disturbance)
            return False
        while True:
            processes = self._start()
            try:
                repaired = disturbance(processes)
            finally:
                for process in processes:
                    process.end()
            if repaired != "again":
                break
        if any(process.left() for process in processes):
            raise Wrong("a process of the run's group is left after its end")
        return repaired == "ended"

    def _undisturbed(self) -> bool:
        processes = self._start()
        codes = [process.wait() for process in processes]
        if codes == [0] * len(codes):
            return True
        if self._starved(processes):
            return False
        self._repair_or_raise(processes, codes)
        return False

    def _start(self) -> list[Process]:
        changes = {**CHANGES[self._kind], "data__num_workers": int(self._kind == "workers")}
        processes = _start(self.workdir, self._root, self._kind, changes)
        self._last = max(_checkpoints(self.workdir), default=0)
        self.starts += len(processes)
        return processes

    # Kinds of disturbances. Each returns "ended" where the run had ended before, "again" where it
    # refused a damaged checkpoint, which was then repaired.

    def _kill(self, processes):
        process = processes[0]
        self._wait_for_moment(process)
        process.send(signal.SIGKILL)
        return self._expect(process, "SIGKILL", {-9})

    def _terminate(self, processes):
        process = processes[0]
        self._wait_for_moment(process)
        process.send(signal.SIGTERM)
        kind, codes = "SIGTERM", {0, -15}
        if self._rng.random() < 0.25:
            kind = "SIGTERM twice"
            time.sleep(self._rng.uniform(0, 0.3))
            process.send(signal.SIGTERM)
        answer = self._expect(process, kind, codes)
        if answer is None and process.poll() == 0 and not _stopped(process):
            raise Wrong("a run that was asked to stop ended without saying where")
        return answer

    def _stop_and_kill(self, processes):
        process = processes[0]
        self._wait_for_moment(process)
        process.send(signal.SIGSTOP)
        time.sleep(self._rng.uniform(0.02, 0.3))
        process.send(signal.SIGKILL)
        return self._expect(process, "SIGSTOP, then SIGKILL", {-9})

    def _fill_disk(self, processes):
        process = processes[0]
        self._wait_for_moment(process)
        filler = self._root / "disk" / "filler"
        if self._full:
            with filler.open("wb", buffering=0) as file:
                for size in (2**20, 2**12, 1):
                    with contextlib.suppress(OSError):
                        while True:
                            file.write(bytes(size))
        elif process.poll() is None:
            size = self._rng.choice((0, 100, 2000))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
        try:
            process.wait()
        finally:
            filler.unlink(missing_ok=True)
        answer = self._expect(process, "full disk", {1})
        if answer is None:
            output = self._output(process)
            if "\nerror: " not in output or "Traceback" in output:
                raise Wrong("a full disk is not answered by one sentence")
        return answer

    def _kill_worker(self, processes):
        process = processes[0]
        end = time.monotonic() + forked.LIMIT
        while not process.children() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(self._rng.uniform(0, 1.0 if self._rng.random() < 0.5 else 5.0))
        workers = process.children()
        if process.poll() is None and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._rng.choice(workers), signal.SIGKILL)
        process.wait()
        answer = self._expect(process, "SIGKILL of a data worker", {1})
        if answer is None and "A worker process of the loader died" not in self._output(process):
            raise Wrong("the death of a data worker is not said")
        return answer

    def _one_of_two(self, processes):
        # Before they have met, the other waits for the first to come as long as JAX does: 300 s.
        while "is connected to" not in self._output(processes[0]) and processes[0].poll() is None:
            time.sleep(0.01)
        self._wait_for_moment(processes[0], joined=True)
        which = self._rng.randrange(2)
        victim, other = processes[which], processes[1 - which]
        how = self._rng.choice(("SIGKILL", "SIGKILL", "SIGTERM"))
        kind = f"{how} of one of two"
        victim.send(getattr(signal, how))
        codes = [process.wait() for process in processes]
        if self._starved(processes):
            return None
        answer = self._expect(victim, kind, {-9} if how == "SIGKILL" else {0})
        if answer is not None:
            return answer
        if how == "SIGTERM":
            if codes != [0, 0] or not _stopped(processes[0]):
                raise Wrong(f"one of two was asked to stop: exit codes {codes}")
        elif codes[1 - which] == 0 and not _finished(processes[0]):
            raise Wrong("one of two was killed, and the other ended well before the end")
        elif codes[1 - which] != 0:
            sentences = ("communication between the processes failed", "another task died")
            if not any(sentence in self._output(other) for sentence in sentences):
                raise Wrong("one of two was killed, and the other does not say why it ended")
        return None

    def _starved(self, processes: list[Process]) -> bool:
        """Whether two processes gave each other up, because the machine let one of them wait.

        Neither was killed: a process counts as lost after 30 s without a heartbeat.
        """
        codes = [process.wait() for process in processes]
        starved = codes == [-6, -6] and "heartbeats" in self._output(processes[0])
        if starved:
            self.missed.append("one of two without a heartbeat for 30 s")
            self.events.append("a process of two had no heartbeat for 30 s")
        return starved

    def _damage(self, kind: str) -> None:
        """Truncates a file or flips a bit, while nothing runs."""
        if not _checkpoints(self.workdir):
            self.missed.append(kind)
            return
        files = [path for path in self.workdir.rglob("*") if path.is_file()]
        files = [path for path in sorted(files) if path.stat().st_size]
        if kind == "flipped bit":  # a digit of the records may change: they have no checksums
            files = [path for path in files if path.name != "metrics.jsonl"]
        path = self._rng.choice(files)
        content = bytearray(path.read_bytes())
        place = self._rng.randrange(len(content))
        self._backups.setdefault(path, bytes(content))
        if kind == "truncated file":
            content = content[:place]
            self._records_cut |= path.name == "metrics.jsonl"
        else:
            content[place] ^= 1 << self._rng.randrange(8)
        path.write_bytes(content)
        self.done.append(kind)
        self.events.append(f"{kind}: {path.relative_to(self.workdir)} at byte {place}")

    def _wait_for_moment(self, process: Process, *, joined: bool = False) -> None:
        """Waits for a moment: some time after the start, a step, a save or an evaluation."""
        moment = self._rng.choice(("time", "step", "save", "evaluation"))
        later = self._rng.uniform(0, 0.15)
        step = self._rng.randint(self._last + 1, STEPS) if self._last < STEPS else STEPS
        if moment == "time" or self._last == STEPS:
            moment, later = "time", self._rng.uniform(0, self._usual * (0.4 if joined else 0.8))
        started = time.time() - 0.1
        while moment != "time" and process.poll() is None:
            if _reached(self.workdir, process, moment, step, started):
                break
            time.sleep(0.01)
        time.sleep(later)
        at = "" if moment == "time" else f" at {moment}, step {step}"
        self.events.append(f"{later:.3f} s later{at}:")

    def _expect(self, process: Process, kind: str, codes: set[int]):
        """Waits for the end, and counts the disturbance if it ended the process."""
        code = process.wait()
        self.events[-1:] = [f"{' '.join(self.events[-1:])} {kind}: exit code {code}"]
        if code == 0 and _finished(process):
            self.missed.append(kind)
            return "ended"
        if code == 1 and self._backups and self._refused(process):
            self._repair_or_raise([process], [code])
            return "again"
        if code not in codes:
            raise Wrong(f"{kind}: exit code {code}: {self._output(process)[-2000:]}")
        self.done.append(kind)
        return None

    def _refused(self, process: Process) -> bool:
        return "are damaged" in self._output(process)

    def _repair_or_raise(self, processes: list[Process], codes: list[int]) -> None:
        """Restores damaged files, where a run refuses because no checkpoint is whole."""
        if not self._backups or not self._refused(processes[0]):
            raise Wrong(f"exit codes {codes}: {self._output(processes[0])[-2000:]}")
        for path, content in self._backups.items():
            if path.exists():
                path.write_bytes(content)
        self._backups.clear()
        self.events.append("refused, because no checkpoint is whole; the files were repaired")

    def _output(self, process: Process) -> str:
        return process.output().rpartition("----\n")[2]


def _start(workdir: Path, root: Path, kind: str, changes: dict) -> list[Process]:
    """Starts train.py, for runs of two as two processes."""
    count = 2 if kind == "two" else 1
    options = {"accumulate": 1, "mesa__weight": 0.0, **changes}
    command = killed_run.command(workdir, root / "data", **options)
    if count > 1:
        address = f"127.0.0.1:{forked.free_port()}"
        command += [f"--coordinator={address}", f"--num_processes={count}"]
    processes = []
    for number in range(count):
        log = root / f"process_{number}.log"
        with log.open("a") as file:
            file.write("----\n")
        own = [f"--process_id={number}"] if count > 1 else []
        processes.append(Process([*command, *own], log))
    return processes


def _checkpoints(workdir: Path) -> list[int]:
    """Steps of the checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdigit()]


def _reached(workdir: Path, process: Process, moment: str, step: int, started: float) -> bool:
    """Whether a process, and not the one before it, is where it is to be disturbed."""
    if moment == "save":
        for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
            with contextlib.suppress(OSError):
                of_this = path.stat().st_mtime > started
                if of_this and int(re.match(r"\d*", path.name)[0] or 0) >= step:
                    return True
        return False
    steps = re.findall(r"^step (\d+)/", process.output().rpartition("----\n")[2], re.MULTILINE)
    if moment == "evaluation":
        step = -(-step // EPOCH_STEPS) * EPOCH_STEPS
    return bool(steps) and int(steps[-1]) >= step


def _stopped(process: Process) -> bool:
    return "Stopped after step" in process.output().rpartition("----\n")[2]


def _finished(process: Process) -> bool:
    return "\nResult: " in process.output().rpartition("----\n")[2]


def _differences(workdir: Path, whole: Path, records_cut: bool) -> list[str]:
    """What differs from the undisturbed run; of cut records, those that are left."""
    logging.set_verbosity(logging.ERROR)
    found = killed_run.differences(workdir, whole, arrays=20)
    if records_cut and "metrics.jsonl" in found:
        known = killed_run.records(whole)
        left = killed_run.records(workdir)
        if all(record in known for record in left) and left[-1] == known[-1]:
            found.remove("metrics.jsonl")
    return found


def _shared_memory() -> set[str]:
    """Names of shared memory that no living process uses."""
    names = {path.name for path in Path("/dev/shm").glob("psm_*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if not names:
            break
        with contextlib.suppress(OSError):
            used = maps.read_text()
            names = {name for name in names if name not in used}
    return names


@contextlib.contextmanager
def _disk(root: Path) -> Iterator[bool]:
    """A small file system for the runs, which can be filled; whether it could be mounted."""
    place = root / "disk"
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        mounted = not subprocess.run(command, capture_output=True).returncode
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], capture_output=True)


if __name__ == "__main__":
    assert jax  # imported here, so that every process has it
    main()
