"""Ten training steps of a small network, ours and the official one in torch, from the same weights.

In float64 everything must agree to 1e-9. In float32 the reference does not agree with itself in the
weights (entries whose true gradient is zero get whole Adam steps of noise), so there gradients are
compared by tensor and losses by step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _differences(dtype: str, steps: int) -> dict:
    """Runs `trajectory.py`: the width of JAX's floats is set for a whole process."""
    program = Path(__file__).with_name("trajectory.py")
    width = {"JAX_ENABLE_X64": str(int(dtype == "float64"))}
    result = subprocess.run(
        [sys.executable, program, dtype, str(steps)],
        env={**os.environ, **width, "PYTHONPATH": str(program.parents[2])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_float64_to_the_ninth_digit(record_property):
    found = _differences("float64", 10)
    record_property("differences", found)
    for difference in found.values():
        assert difference < 1e-9, found


@pytest.mark.slow
def test_float32_losses_and_gradients(record_property):
    found = _differences("float32", 5)
    record_property("differences", found)
    assert found["loss"] < 1e-5, found
    assert found["gradients"] < 1e-3, found
