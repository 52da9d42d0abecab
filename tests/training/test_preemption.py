"""SIGTERM: the step is finished and saved, and nothing is repeated afterwards."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.small import killed_run

ASK = """
import sys, time
from fastervit_jax.training.preemption import Interrupted, StopRequest
with StopRequest() as stop:
    stop.interrupt()
    print("ready", flush=True)
    while not stop.agreed(1):
        time.sleep(0.01)
    try:
        stop.interrupt()
    except Interrupted:
        print("interrupted", flush=True)
    time.sleep(float(sys.argv[1]))
print("left", flush=True)
"""


def _asked(seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", ASK, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("Asked to stop")
    return process


def test_the_first_signal_is_a_request():
    process = _asked(0)
    # Not `communicate`, which does not see what `readline` has already taken from the pipe.
    assert process.wait(timeout=30) == 0
    assert process.stdout.read() == "interrupted\nleft\n"


def test_the_second_signal_ends_the_process_at_once():
    process = _asked(60)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert time.monotonic() - begin < 10


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step 3", "evaluation", "start"])
def test_a_stopped_run_goes_on_where_it_was(tiny, moment):
    """The signal goes to the whole process group, workers included, as schedulers send it."""
    workdir = tiny / moment.replace(" ", "_")
    process = subprocess.Popen(
        killed_run.command(workdir, tiny / "data", data__num_workers=2),
        cwd=killed_run.ROOT,
        env=killed_run.environment(tiny / "cache"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not _at(workdir, moment):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    (said,) = (line for line in output.splitlines() if line.startswith("Stopped after step"))
    step = int(said.split()[3])
    assert "start the same command again" in said
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert max(r["step"] for r in killed_run.records(workdir)) == step
    result = killed_run.run(workdir, tiny / "data", tiny / "cache")
    assert result.returncode == 0, result.stderr
    assert f"Resuming from step {step} of 10" in result.stdout
    assert not killed_run.differences(workdir, tiny / "whole")


def _at(workdir, moment: str) -> bool:
    if moment == "start":
        return (workdir / "running.lock").exists() and (workdir / "config.json").exists()
    records = killed_run.records(workdir) if (workdir / "metrics.jsonl").exists() else []
    step = 3 if moment == "step 3" else killed_run.EPOCH_STEPS
    return bool(records) and records[-1]["step"] == step and "loss" in records[-1]
