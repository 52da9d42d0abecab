"""The command line, as a user has it, on a work directory that train.py could have left."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import chex
import fastervit.models.faster_vit
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from fastervit_jax import create_model
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.config import default_config, model_config
from fastervit_jax.runs.state import new_state
from fastervit_jax.runs.workdir import save_config
from fastervit_jax.weights.convert import export_to_torch
from fastervit_jax.weights.names import torch_name
from fastervit_jax.weights.torch_files import read_torch_checkpoint
from tests.reference.official import images, largest_difference, our_outputs, to_torch
from tests.small.weights import arrays, random_model

ROOT = Path(__file__).parents[2]
MODEL = dict(
    num_classes=3, resolution=64, window_size=(2, 2, 2, 2), ct_size=1, dim=16, in_dim=8
) | dict(depths=(1, 1, 2, 1))


def convert(*flags) -> subprocess.CompletedProcess:
    command = [sys.executable, "convert_torch_weights.py", *map(str, flags)]
    return subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )


def refused(*flags) -> str:
    """The one line on standard error of a command that fails."""
    result = convert(*flags)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory after seven steps; its weights and their EMA are random_model(0, 1)."""
    path = tmp_path_factory.mktemp("run")
    config = default_config()
    for key, value in MODEL.items():
        config.model[key] = value
    save_config(config, path)
    plain, average = (random_model("faster_vit_0_224", seed, **MODEL) for seed in (0, 1))
    assert model_config(config) == plain.config
    state = dataclasses.replace(
        new_state(*arrays_of(plain), optax.sgd(0.1)),
        step=jnp.int32(7),
        ema={**arrays_of(average)[0], **arrays_of(average)[1]},
    )
    checkpoints = Checkpoints(path)
    checkpoints.save(7, state, {"class_names": ["cat", "dog", "cow"]})
    checkpoints.close()
    return path, plain, average


def assert_stores(file, ema, model):
    stored = read_torch_checkpoint(file, ema=ema).tensors
    for name, array in arrays(model).items():
        theirs = stored[torch_name(name)].read()
        axes = (2, 3, 1, 0) if theirs.ndim == 4 else None
        np.testing.assert_array_equal(array, theirs.transpose(axes), err_msg=name)


@pytest.mark.slow
def test_a_trained_network_goes_to_the_official_repository(workdir, tmp_path):
    path, plain, average = workdir
    file = tmp_path / "trained.pth.tar"
    result = convert("--model=faster_vit_0_224", f"--weights={path}", f"--to_torch={file}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Compared with the official network") == 2
    assert_stores(file, False, plain)
    assert_stores(file, True, average)

    official = fastervit.models.faster_vit.faster_vit_0_224(**MODEL).eval()
    official._load_state_dict(str(file), strict=True)
    noise = images(2, 64, 64)
    with torch.no_grad():
        theirs = official(to_torch(noise).float()).numpy()
    ours = our_outputs(plain, noise)[0]
    assert largest_difference(ours, theirs) < 1e-5

    with pytest.raises(FileExistsError, match="--overwrite"):
        export_to_torch("faster_vit_0_224", path, file)


def test_a_work_directory_loads_like_other_weights(workdir):
    path, _, average = workdir
    model = create_model("faster_vit_0_224", weights=path)
    chex.assert_trees_all_equal(arrays(model), arrays(average))
    assert model.class_names == ("cat", "dog", "cow")


def test_an_empty_file_is_one_sentence(tmp_path):
    (tmp_path / "empty.pth").touch()
    line = refused(
        "--model=faster_vit_0_224",
        f"--checkpoint={tmp_path / 'empty.pth'}",
        f"--output={tmp_path / 'out'}",
    )
    assert "is empty" in line
    assert not (tmp_path / "out").exists()
