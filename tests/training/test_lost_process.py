"""A run of two processes: one is killed, or asked to stop."""

import signal
import socket
import subprocess
import time

import pytest

from tests.training import tiny_run

pytestmark = pytest.mark.slow

CHANGES = {"accumulate": 1, "mesa__weight": 0.0, "mesh__data": 2}


def _start(workdir, tiny, **changes) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = tiny_run.environment(tiny / "cache")
    environment["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    command = tiny_run.command(workdir, tiny / "data", **CHANGES, **changes)
    command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={number}"],
            cwd=tiny_run.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]


def _wait_for_step(workdir, step: int, processes) -> None:
    while all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists():
            records = tiny_run.records(workdir)
            if records and records[-1]["step"] >= step:
                return
        time.sleep(0.02)
    raise AssertionError([process.communicate()[0] for process in processes])


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_ends_within_a_minute_and_says_why(tiny, tmp_path, killed):
    processes = _start(tmp_path / "run", tiny, epochs=50)
    _wait_for_step(tmp_path / "run", 3, processes)
    processes[killed].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    other = processes[1 - killed]
    output = other.communicate(timeout=60)[0]
    print(f"process {killed} killed: the other ended after {time.monotonic() - begin:.0f} s")
    assert other.returncode not in (0, None)
    assert "could not go on together" in output or "another task died" in output, output


@pytest.mark.parametrize("asked", [0, 1])
def test_both_stop_at_the_same_step_whoever_is_asked(tiny, tmp_path, asked):
    processes = _start(tmp_path / "run", tiny, epochs=50)
    _wait_for_step(tmp_path / "run", 3, processes)
    processes[asked].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = [line for text in outputs for line in text.splitlines() if "Stopped after step" in line]
    assert len({line.split()[3] for line in said}) == 1
    step = int(said[0].split()[3])
    assert max(r["step"] for r in tiny_run.records(tmp_path / "run")) == step
    processes = _start(tmp_path / "run", tiny, epochs=50)
    _wait_for_step(tmp_path / "run", step + 2, processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert f"Going on from step {step} of" in outputs[0]
    steps = [r["step"] for r in tiny_run.records(tmp_path / "run") if "loss" in r]
    assert steps == list(range(1, len(steps) + 1))
