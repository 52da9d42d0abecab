"""A run that is small enough for every test: digits, a tiny network, a few steps."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]

FLAGS = {
    "model.dim": 8,
    "model.in_dim": 8,
    "model.num_heads": (1, 2, 4, 4),
    "model.depths": (1, 1, 1, 1),
    "model.resolution": 64,
    "batch_size": 128,
    "epochs": 1,
    "optimizer.warmup_epochs": 0.5,
    "log_every_steps": 4,
    "evaluation.every_epochs": 1,
    "checkpoint.every_epochs": 1,
}


def recipe(name: str):
    """The config of a file of configs/."""
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def small_config(data_dir, **changes):
    """The digits recipe, made small; changes are dotted keys with `__` for dots."""
    config = recipe("digits")
    config.data.data_dir = str(data_dir)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict({**FLAGS, **changes})
    return config


def as_flags(config_changes: dict) -> list[str]:
    """The same changes as flags of train.py."""
    return [f"--config.{key}={value}" for key, value in config_changes.items()]
