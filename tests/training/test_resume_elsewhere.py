"""A checkpoint of 8 devices (2 × 4) goes on with other devices, meshes and numbers of processes."""

import shutil
import socket
import subprocess

import numpy as np
import pytest

from tests.training import tiny_run

pytestmark = pytest.mark.slow

# SGD: Adam would turn rounding into steps.
CHANGES = {
    "batch_size": 16,
    "evaluation__batch_size": 8,
    "epochs": 4,
    "group_size": 8,
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.05,
}


def _flags(workdir, root, mesh, **more):
    data, fsdp = mesh
    return tiny_run.command(
        workdir, root / "data", **CHANGES, mesh__data=data, mesh__fsdp=fsdp, **more
    )


def _environment(root, devices):
    """Without optimisation: it is compiled for five meshes."""
    environment = tiny_run.environment(root / "cache", devices)
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    environment["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    return environment


def _run(workdir, root, mesh, *, processes=1, **more):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for number in range(processes):
        command = _flags(workdir, root, mesh, **more)
        if processes > 1:
            command += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
            command += [f"--process_id={number}"]
        started.append(
            subprocess.Popen(
                command,
                cwd=tiny_run.ROOT,
                env=_environment(root, mesh[0] * mesh[1] // processes),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=1500)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs
    return outputs[0]


def _losses(workdir) -> list[float]:
    return [record["loss"] for record in tiny_run.records(workdir) if "loss" in record]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny):
    """An uninterrupted run on 2 × 4, and the same stopped after four of its eight steps."""
    root = tmp_path_factory.mktemp("elsewhere")
    (root / "data").symlink_to(tiny / "data")
    (root / "cache").symlink_to(tiny / "cache")
    _run(root / "whole", root, (2, 4))
    _run(root / "half", root, (2, 4), stop_after_epochs=2)
    assert len(_losses(root / "whole")) == 8
    assert _losses(root / "half") == _losses(root / "whole")[:4]
    return root


@pytest.mark.parametrize(
    ("mesh", "processes"), [((1, 1), 1), ((4, 1), 1), ((8, 1), 1), ((2, 4), 2), ((4, 1), 2)]
)
def test_losses_go_on_the_same(root, mesh, processes):
    workdir = root / f"on_{mesh[0]}x{mesh[1]}_{processes}"
    shutil.copytree(root / "half", workdir)
    output = _run(workdir, root, mesh, processes=processes)
    assert "Going on from step 4 of 8" in output
    losses, whole = _losses(workdir), _losses(root / "whole")
    difference = np.max(np.abs(np.array(losses) - whole) / whole)
    print(f"{mesh[0]} × {mesh[1]} devices of {processes} process(es): {difference:.1e}")
    assert difference < 1e-5
