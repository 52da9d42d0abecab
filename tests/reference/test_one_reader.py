"""Every way in reads an unusual checkpoint and an unusual folder alike."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fastervit_jax import create_model
from fastervit_jax.evaluation.run import EvaluationOptions, load_for_evaluation
from fastervit_jax.runs.config import default_config
from fastervit_jax.training.finetuning import load_initial_model
from fastervit_jax.weights.convert import convert_checkpoint
from fastervit_jax.weights.loading import open_weights
from fastervit_jax.weights.to_torch import state_to_torch
from tests.small.weights import SMALL, arrays, assert_same, random_model

NAME = "faster_vit_0_224"


@pytest.fixture
def model():
    return random_model(NAME)


@pytest.fixture
def file(model, tmp_path):
    """What a script that compiled the model and saved its settings leaves."""
    state = state_to_torch(arrays(model), model.config)
    content = {
        "epoch": 3,
        "net": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        "settings": {"output": pathlib.PosixPath("runs"), "best": np.float64(0.5)},
    }
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


def test_prediction(file, model):
    with pytest.warns(UserWarning, match="module._orig_mod."):
        assert_same(create_model(NAME, weights=file, **SMALL), model)


def test_evaluation(file, model):
    lines = []
    options = EvaluationOptions(say=lines.append)
    loaded = load_for_evaluation(open_weights(file), NAME, SMALL, None, options)
    assert_same(loaded.model, model)
    assert any("module._orig_mod." in line for line in lines)


def test_fine_tuning(file, model):
    config = default_config()
    for key, value in SMALL.items():
        config.model[key] = value
    config.finetune.weights = str(file)
    assert_same(load_initial_model(config, jnp.float32), model)


def test_conversion(file, model, tmp_path):
    lines = []
    convert_checkpoint(NAME, file, tmp_path / "converted", say=lines.append, **SMALL)
    assert_same(create_model(NAME, weights=tmp_path / "converted"), model)
    assert any("module._orig_mod." in line for line in lines)
