"""train.py as several processes, each reading its own part of the data."""

import numpy as np
import pytest

from fastervit_jax.models.functional import arrays_of
from fastervit_jax.training.reporting import read_metrics
from fastervit_jax.training.workdir import load_trained
from tests.training.hosts import start
from tests.training.small_run import FLAGS, as_flags

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


@pytest.mark.slow
def test_two_and_four_processes_are_as_one(tmp_path):
    for count, mesh in ((1, (4, 1)), (2, (4, 1)), (4, (1, 4))):
        name, changes = f"run{count}", {"mesh__data": mesh[0], "mesh__fsdp": mesh[1]}
        flags = _flags(tmp_path / name, tmp_path / "data", **changes)
        results = start(count, flags, devices=4 // count)
        assert [code for code, *_ in results] == [0] * count, results
    one = _losses(tmp_path / "run1")
    assert len(one) == 22
    weights = arrays_of(load_trained(tmp_path / "run1").model)[0]
    for count in (2, 4):
        np.testing.assert_allclose(_losses(tmp_path / f"run{count}"), one, rtol=1e-5)
        other = arrays_of(load_trained(tmp_path / f"run{count}").model)[0]
        for name, array in weights.items():
            np.testing.assert_allclose(other[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


def test_hosts_that_disagree_on_the_config_are_refused(tmp_path):
    results = start(
        2,
        _flags(tmp_path / "run", tmp_path / "data"),
        flags_of=lambda host: [f"--config.seed={host}"],
    )
    assert [code for code, *_ in results] == [1, 1]
    for host, (_, _, errors) in enumerate(results):
        refusal = next(line for line in errors.splitlines() if line.startswith("error: "))
        assert f"The hosts disagree on config.seed: host {host} has '{host}'" in refusal
    assert not (tmp_path / "run").exists()
