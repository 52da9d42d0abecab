"""Disturbed runs: one of each kind, and whether a difference would be seen."""

import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import optax
import pytest

from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.state import new_state
from tests.small import killed_run


@pytest.mark.slow
def test_a_few_disturbed_runs(tmp_path):
    """In a process of its own, which must not have asked JAX for a device."""
    command = [sys.executable, "-m", "tests.faults.kills", f"--workdir={tmp_path}"]
    command += ["--kinds=alone,workers,two", "--seconds=240"]
    result = subprocess.run(command, cwd=killed_run.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (record,) = json.loads((tmp_path / "kills.json").read_text())
    print(json.dumps(record, indent=2))
    assert record["unequal"] == []
    assert record["disturbances"] >= 8


def test_any_difference_is_seen(tmp_path):
    def write(workdir, value, record):
        params = {f"{name}.kernel": jnp.full((2, 3), value) for name in "abcd"}
        checkpoints = Checkpoints(workdir)
        state = new_state(params, {"norm.mean": jnp.zeros(3)}, optax.adam(0.1))
        checkpoints.save(killed_run.STEPS, state, {})
        checkpoints.close()
        (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")

    def differences():
        found = killed_run.differences(tmp_path / "run", tmp_path / "whole", arrays=10)
        shutil.rmtree(tmp_path / "run")
        return found

    write(tmp_path / "whole", 1.0, {"step": 1, "loss": 2.0, "step_seconds": 1})
    write(tmp_path / "run", 1.0, {"step": 1, "loss": 2.0, "step_seconds": 5})
    assert differences() == []
    write(tmp_path / "run", 1.0, {"step": 1, "loss": 2.5})
    assert differences() == ["metrics.jsonl"]
    write(tmp_path / "run", 1 + 2.0**-23, {"step": 1, "loss": 2.0})
    found = differences()
    assert len(found) == 8 and all(name.endswith(".kernel']") for name in found)  # and the EMA
