"""train.py as several processes, each reading its own part of the data."""

import shutil

import numpy as np
import pytest

from fastervit_jax.runs.workdir import load_trained
from fastervit_jax.training.reporting import read_metrics
from tests.parallel.hosts import start
from tests.small.run import FLAGS, ROOT, as_flags

# SGD: Adam would turn rounding into steps.
CHANGES = {
    **FLAGS,
    "batch_size": 64,
    "group_size": 16,
    "accumulate": 2,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.05,
    "log_every_steps": 1,
    "evaluation.batch_size": 64,
    "data.num_workers": 0,
}


def _flags(workdir, data_dir, **changes) -> list[str]:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    flags = ["--config=configs/digits.py", f"--workdir={workdir}"]
    return [*flags, f"--config.data.data_dir={data_dir}", *as_flags({**CHANGES, **changes})]


def _losses(workdir) -> list[float]:
    return [record["loss"] for record in read_metrics(workdir) if "loss" in record]


def _as_processes(count: int, root, **options) -> None:
    """Runs on four devices: `data` splits the batch, or with four processes `fsdp` all."""
    changes = {"mesh__fsdp": 4} if count == 4 else {"mesh__data": 4}
    workdir = root / options.pop("name", f"run{count}")
    flags = _flags(workdir, root / "data", **changes)
    results = start(count, flags, devices=4 // count, **options)
    assert [code for code, *_ in results] == [0] * count, results


@pytest.mark.slow
def test_two_and_four_processes_are_as_one(tmp_path):
    """In float64: every parameter after every step."""
    program = ("-m", "tests.parallel.float64_steps")
    for count in (1, 2, 4):
        _as_processes(count, tmp_path, name=f"{count}.npz", program=program)
    one = np.load(tmp_path / "1.npz")
    losses = [float(one[name]) for name in one if name.endswith("/loss")]
    assert len(set(losses)) == len(losses) == 8, "the losses stand still"
    for count in (2, 4):
        other = np.load(tmp_path / f"{count}.npz")
        assert set(other) == set(one)
        difference = max(
            float(np.max(np.abs(other[name] - array) / np.maximum(1, np.abs(array))))
            for name, array in one.items()
        )
        print(f"{count} processes, eight steps in float64: {difference:.1e}")
        assert difference < 1e-9


@pytest.mark.slow
def test_a_whole_run_as_two_and_four_processes(tmp_path):
    """train.py itself, in float32, where only the first steps can be compared."""
    for count in (1, 2, 4):
        _as_processes(count, tmp_path)
    one = _losses(tmp_path / "run1")
    assert len(one) == 22
    for count in (2, 4):
        other = _losses(tmp_path / f"run{count}")
        np.testing.assert_allclose(other[:5], one[:5], rtol=1e-5)
        # What is left of a gap that rounding opens: other images would leave another loss.
        np.testing.assert_allclose(other, one, rtol=0.05)
        assert load_trained(tmp_path / f"run{count}").step == 22


def test_hosts_that_disagree_on_the_config_are_refused(tmp_path):
    results = start(
        2,
        _flags(tmp_path / "run", tmp_path / "data"),
        flags_of=lambda host: [f"--config.seed={host}"],
    )
    assert [code for code, *_ in results] == [1, 1]
    for host, (_, _, errors) in enumerate(results):
        refusal = next(line for line in errors.splitlines() if line.startswith("error: "))
        assert f"The hosts disagree on config.seed. Host {host} has '{host}'" in refusal
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_with_different_code_are_refused(tmp_path):
    for name in ("fastervit_jax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name)
    shutil.copy(ROOT / "train.py", tmp_path / "copy")
    with (tmp_path / "copy" / "fastervit_jax" / "models" / "stage.py").open("a") as file:
        file.write("# changed\n")
    roots = (ROOT, tmp_path / "copy")
    results = start(2, _flags(tmp_path / "run", tmp_path / "data"), root_of=roots.__getitem__)
    assert [code for code, *_ in results] == [1, 1]
    for _, _, errors in results:
        assert "error: The hosts disagree on the code of fastervit_jax. Host" in errors
        assert "Install the same version on all hosts" in errors
    assert not (tmp_path / "run").exists()
