"""One run in a work directory at a time."""

import os
import signal
import subprocess
import sys

import pytest
from etils import epath

from fastervit_jax.runs.lock import exclusive

HOLD = """
import sys, time
from etils import epath
from fastervit_jax.runs.lock import exclusive
with exclusive(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_gone_even_if_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"Another run uses .*process {holder.pid} on "):
        exclusive(epath.Path(tmp_path)).__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with exclusive(epath.Path(tmp_path)):
        assert str(os.getpid()) in (tmp_path / "running.lock").read_text()
    with exclusive(epath.Path(tmp_path)):
        pass


def test_a_directory_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"Cannot write to the work directory"),
        exclusive(epath.Path(tmp_path / "file" / "run")),
    ):
        pass
