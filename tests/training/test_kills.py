"""Twenty runs with the whole recipe on, each killed at a random moment and started again.

Every one must end with the uninterrupted run's state, to the bit, and its records, each once. With
`-s` the table is shown.
"""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.small import killed_run

pytestmark = pytest.mark.slow

MOMENTS = ("start-up", "step", "save", "evaluation")


def _records(workdir: Path) -> list[dict]:
    return killed_run.records(workdir) if (workdir / "metrics.jsonl").exists() else []


def _reached(workdir: Path, moment: str, step: int) -> bool:
    """Whether a run is where it is to be killed."""
    if moment == "save":
        unfinished = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        return any(int(path.name.split(".")[0]) >= step for path in unfinished)
    records = _records(workdir)
    if moment == "evaluation":
        epoch_end = -(-step // killed_run.EPOCH_STEPS) * killed_run.EPOCH_STEPS
        return bool(records) and records[-1]["step"] == epoch_end and "loss" in records[-1]
    return bool(records) and records[-1]["step"] >= step


def _start_and_kill(workdir: Path, root: Path, moment: str, rng: random.Random) -> str:
    """Starts a run and kills it; returns when."""
    process = subprocess.Popen(
        killed_run.command(workdir, root / "data"),
        cwd=killed_run.ROOT,
        env=killed_run.environment(root / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    step = rng.randint(1, killed_run.STEPS - 1)
    if moment == "start-up":
        delay, when = rng.uniform(0.5, 15), ""
    else:
        delay, when = rng.uniform(0, 0.3), f" from step {step} on"
        while not _reached(workdir, moment, step) and process.poll() is None:
            time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"it ended before {moment}{when}"
    return f"{moment}{when}, {delay:.2f} s later"


@pytest.mark.parametrize("seed", range(20))
def test_a_killed_run_ends_as_the_uninterrupted_one(tiny, seed):
    rng = random.Random(seed)
    workdir = tiny / f"killed_{seed}"
    when = _start_and_kill(workdir, tiny, MOMENTS[seed % len(MOMENTS)], rng)
    left = len(_records(workdir))
    result = killed_run.run(workdir, tiny / "data", tiny / "cache")
    assert result.returncode == 0, result.stderr
    went_on = [line for line in result.stdout.splitlines() if line.startswith("Going on")]
    differing = killed_run.differences(workdir, tiny / "whole")
    said = went_on[0].split(" in ")[0] if went_on else "Starting anew"
    print(f"run {seed}: killed at {when}, {left} records left. {said}. Differing: {differing}")
    assert not differing
