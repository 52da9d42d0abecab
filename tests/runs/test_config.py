"""What a config refuses, and that it does so before anything is written or compiled."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastervit_jax.runs.config import default_config, model_config
from fastervit_jax.runs.config_checks import check_config

ROOT = Path(__file__).parents[2]


def _changed(key: str, value):
    config = default_config()
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    return config


def test_default_config_is_usable():
    check_config(default_config(), batch_shards=8, hosts=2)
    assert model_config(default_config()).depths == (2, 3, 6, 5)


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        ("model.num_classes", 0, "at least 1"),
        ("model.name", "faster_vit_9_224", "Invalid model"),
        ("model.depths", (1, 2), "four"),
        ("model.dtype", "float16", "float32 or bfloat16"),
        ("batch_size", 0, "1 or more"),
        ("batch_size", 4097, "8 devices"),
        ("epochs", 0, "1 or more"),
        ("crop.scale", (0.5, 1.5), "at most 1"),
        ("crop.ratio", (2.0, 1.0), "a pair"),
        ("flip", 1.5, "from 0 to 1"),
        ("ema_decay", 1.0, "[0, 1)"),
        ("optimizer.name", "adam", "adamw or lamb"),
        ("optimizer.learning_rate", -1.0, "0 or more"),
        ("optimizer.warmup_epochs", 400.0, "config.epochs"),
        ("evaluation.crop_fraction", 0.0, "above 0"),
        ("seed", -1, "0 to 2"),
        ("seed", None, "a whole number"),  # `null` in a config.json
        ("flip", None, "a finite number"),
        ("crop.scale", (), "a pair"),
    ],
)
def test_impossible_values_are_refused_by_name(key, value, wanted):
    with pytest.raises(ValueError, match=f"config.{key.split('.')[0]}") as refusal:
        check_config(_changed(key, value), batch_shards=8)
    assert wanted in str(refusal.value)


def test_tensor_must_divide_heads_and_widths():
    config = default_config()
    check_config(config, batch_shards=8, tensor=8)
    with pytest.raises(
        ValueError,
        match=r"Invalid config.mesh.tensor=16: must divide the 8 attention heads of stage",
    ):
        check_config(config, batch_shards=8, tensor=16)
    config.model.num_heads = (1, 1, 6, 6)
    config.model.dim = 6
    config.model.mlp_ratio = 1.05
    with pytest.raises(
        ValueError, match=r"tensor=2: must divide the 25 hidden channels of its MLPs of stag"
    ):
        check_config(config, batch_shards=8, tensor=2)


@pytest.mark.parametrize(
    "flag, wanted",
    [
        ("--config.optimizer.learning_rat=1", "Did you mean"),
        ("--config.batch_size=many", "config.batch_size=many"),
        ("--config.model.num_classes=0", "config.model.num_classes=0"),
        ("--config.model.num_classes=11", "has 10 classes"),
        ("--config.mesh.data=3", "data=3"),
        ("--config.remat=(1,5)", "config.remat=(1, 5)"),
        ("--config.rand_augment=nonsense", "config.rand_augment"),
        ("--config.data.train=folder:/no/such/folder", "/no/such/folder"),
    ],
)
def test_command_line_refuses_in_one_sentence(flag, wanted, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += [f"--config.data.data_dir={tmp_path}", flag]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert wanted in result.stderr
    assert "Traceback" not in result.stderr
    assert not workdir.exists()
