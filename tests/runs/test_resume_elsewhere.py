"""A checkpoint of 8 devices (2 × 4) goes on with other devices, meshes and numbers of processes."""

import shutil

import numpy as np
import pytest

from tests.small import killed_run

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


def _run(workdir, root, mesh, *, processes=1, **more):
    data, fsdp = mesh
    started = killed_run.start(
        workdir,
        root / "data",
        root / "cache",
        processes=processes,
        devices=data * fsdp // processes,
        mesh__data=data,
        mesh__fsdp=fsdp,
        **CHANGES,
        **more,
    )
    return killed_run.outputs_of(started)[0]


def _losses(workdir) -> list[float]:
    return [record["loss"] for record in killed_run.records(workdir) if "loss" in record]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny):
    """An uninterrupted run on 2 × 4, and the same after four of its eight steps."""
    root = tmp_path_factory.mktemp("elsewhere")
    (root / "data").symlink_to(tiny / "data")
    (root / "cache").symlink_to(tiny / "cache")
    _run(root / "whole", root, (2, 4), checkpoint__keep=9)
    assert len(_losses(root / "whole")) == 8
    shutil.copytree(root / "whole", root / "half")
    for later in (6, 8):
        shutil.rmtree(root / "half" / "checkpoints" / str(later))
    return root


@pytest.mark.parametrize(
    ("mesh", "processes"), [((1, 1), 1), ((4, 1), 1), ((8, 1), 1), ((4, 1), 2)]
)
def test_losses_go_on_the_same(root, mesh, processes):
    workdir = root / f"on_{mesh[0]}x{mesh[1]}_{processes}"
    shutil.copytree(root / "half", workdir)
    output = _run(workdir, root, mesh, processes=processes)
    assert "Resuming from step 4 of 8" in output
    losses, whole = _losses(workdir), _losses(root / "whole")
    assert losses[:4] == whole[:4]
    difference = np.max(np.abs(np.array(losses) - whole) / whole)
    print(f"{mesh[0]} × {mesh[1]} devices of {processes} process(es): {difference:.1e}")
    assert difference < 1e-5
