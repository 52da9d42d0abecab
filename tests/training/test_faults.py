"""Faults around a run: full and read-only disks, two runs in one place, other runs' checkpoints."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.small import killed_run

pytestmark = pytest.mark.slow


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system in memory with the options given; needs the right to."""
    place = tmp_path / "mounted"
    place.mkdir()

    def do(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        return place

    yield do
    subprocess.run(["umount", str(place)], capture_output=True)


def _error(result) -> str:
    assert result.returncode == 1, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


def _checkpoints(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tiny, mount):
    room = 3 * _size(tiny / "whole" / "checkpoints" / "10") + 300_000
    workdir = mount(f"size={room}") / "run"
    line = _error(killed_run.run(workdir, tiny / "data", tiny / "cache", checkpoint__keep=9))
    assert "Cannot write" in line
    assert "No space left on device" in line
    left = _checkpoints(workdir)
    assert left
    assert left[-1] < 10
    subprocess.run(["mount", "-o", "remount,size=1g", str(workdir.parent)], check=True)
    result = killed_run.run(workdir, tiny / "data", tiny / "cache", checkpoint__keep=9)
    assert result.returncode == 0, result.stderr
    assert f"Resuming from step {left[-1]} of 10" in result.stdout
    assert not killed_run.differences(workdir, tiny / "whole")


def test_a_read_only_work_directory_is_refused(tiny, mount):
    line = _error(killed_run.run(mount("ro") / "run", tiny / "data", tiny / "cache"))
    assert "Cannot write to the work directory" in line and "(Read-only file system)" in line


def test_a_second_run_in_a_work_directory_is_refused(tiny, tmp_path):
    first = subprocess.Popen(
        killed_run.command(tmp_path / "run", tiny / "data"),
        cwd=killed_run.ROOT,
        env=killed_run.environment(tiny / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.05)
    line = _error(killed_run.run(tmp_path / "run", tiny / "data", tiny / "cache"))
    assert f"Another run uses {tmp_path}/run (process {first.pid} on" in line
    assert first.wait() == 0
    assert not killed_run.differences(tmp_path / "run", tiny / "whole")


def test_a_checkpoint_of_another_model_is_refused_and_kept(tiny):
    before = _size(tiny / "whole" / "checkpoints")
    changes = {"model__dim": 16, "optimizer__weight_decay": 0.1}
    result = killed_run.run(tiny / "whole", tiny / "data", tiny / "cache", **changes)
    assert "belongs to another run" in _error(result)
    assert "model.dim: 8 in the checkpoint, 16 now" in result.stderr
    assert "optimizer.weight_decay: 0.005 in the checkpoint, 0.1 now" in result.stderr
    assert _size(tiny / "whole" / "checkpoints") == before


def test_a_change_that_is_named_is_allowed(tiny, tmp_path):
    stopped = killed_run.run(tmp_path / "run", tiny / "data", tiny / "cache", stop_after_epochs=1)
    assert stopped.returncode == 0, stopped.stderr
    change = {"optimizer__learning_rate": 0.001}
    refused = killed_run.run(tmp_path / "run", tiny / "data", tiny / "cache", **change)
    assert "optimizer.learning_rate: 0.005 in the checkpoint, 0.001 now" in refused.stderr
    allowed = {**change, "resume__allow_changes": ("optimizer.learning_rate",)}
    result = killed_run.run(tmp_path / "run", tiny / "data", tiny / "cache", **allowed)
    assert result.returncode == 0, result.stderr
    rates = [r["learning_rate"] for r in killed_run.records(tmp_path / "run") if "loss" in r]
    whole = [r["learning_rate"] for r in killed_run.records(tiny / "whole") if "loss" in r]
    assert rates[:5] == whole[:5]
    assert all(rate < other for rate, other in zip(rates[5:9], whole[5:9], strict=True))
