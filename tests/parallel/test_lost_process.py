"""A run of two processes: one is killed, or asked to stop."""

import signal
import time

import pytest

from tests.small import killed_run

pytestmark = pytest.mark.slow

CHANGES = {"accumulate": 1, "mesa__weight": 0.0, "mesh__data": 2}


def _start(workdir, tiny, **changes):
    return killed_run.start(
        workdir, tiny / "data", tiny / "cache", processes=2, epochs=50, **CHANGES, **changes
    )


def _wait_for_step(workdir, step: int, processes) -> None:
    while all(process.poll() is None for process in processes):
        if (workdir / "metrics.jsonl").exists():
            records = killed_run.records(workdir)
            if records and records[-1]["step"] >= step:
                return
        time.sleep(0.02)
    raise AssertionError([process.communicate()[0] for process in processes])


@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_ends_within_a_minute_and_says_why(tiny, tmp_path, killed):
    processes = _start(tmp_path / "run", tiny)
    _wait_for_step(tmp_path / "run", 3, processes)
    processes[killed].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    other = processes[1 - killed]
    output = other.communicate(timeout=60)[0]
    print(f"process {killed} killed: the other ended after {time.monotonic() - begin:.0f} s")
    assert other.returncode not in (0, None)
    said = ("communication between the processes failed", "another task died")
    assert any(sentence in output for sentence in said), output


def test_both_stop_at_the_same_step_whoever_is_asked(tiny, tmp_path):
    """Twice; what then goes on to the end of an epoch equals the uninterrupted run."""
    run, step = tmp_path / "run", 0
    for asked in (1, 0):
        processes = _start(run, tiny)
        _wait_for_step(run, step + 3, processes)
        processes[asked].send_signal(signal.SIGTERM)
        outputs = killed_run.outputs_of(processes)
        assert "Asked to stop" in outputs[asked]
        (said,) = {line for line in outputs[0].splitlines() if "Stopped after step" in line}
        if step:
            assert f"Resuming from step {step} of" in outputs[0]
        step = int(said.split()[3])
        print(f"process {asked} was asked: both stopped after step {step}")
        assert (run / "checkpoints" / str(step)).is_dir()
        assert max(r["step"] for r in killed_run.records(run)) == step
    epochs = step // killed_run.EPOCH_STEPS + 1
    for workdir in (run, tmp_path / "whole"):
        killed_run.outputs_of(_start(workdir, tiny, stop_after_epochs=epochs))
    assert not killed_run.differences(run, tmp_path / "whole", epochs * killed_run.EPOCH_STEPS)
