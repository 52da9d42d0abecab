"""A run that is small enough for every test: digits, a tiny network, a few steps."""

from pathlib import Path

from fastervit_jax.runs.recipes import load_recipe

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


def small_config(data_dir, **changes):
    """The digits recipe, made small; changes are dotted keys with `__` for dots."""
    config = load_recipe("digits")
    config.data.data_dir = str(data_dir)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict({**FLAGS, **changes})
    return config


def as_flags(config_changes: dict) -> list[str]:
    """The same changes as flags of train.py."""
    return [f"--config.{key}={value}" for key, value in config_changes.items()]
