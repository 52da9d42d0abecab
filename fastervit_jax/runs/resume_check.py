"""Check that a run may resume from a checkpoint."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import jax
import ml_collections

from fastervit_jax.data import Source
from fastervit_jax.runs.config import NEW_NAMES, by_dotted_key, default_config
from fastervit_jax.version import __version__

# Config keys that may change when a run resumes. They do not change the results. They only change
# where and how fast it runs, how often it reports, and when it stops.
_FREE = (
    "checkpoint",
    "data.data_dir",
    "data.max_damaged_share",
    "data.num_workers",
    "evaluation.batch_size",
    "evaluation.every_epochs",
    "evaluation.every_steps",
    "log_every_steps",
    "max_skipped_in_a_row",
    "mesh",
    "profile_steps",
    "remat",
    "remat_transformer",
    "resume",
    "scan_blocks",
    "stop_after_epochs",
    "wandb_project",
)


def run_identity(
    config: ml_collections.ConfigDict, training: Source, validation: Source
) -> dict[str, Any]:
    """Returns the description of a run that is saved with every checkpoint, as JSON values."""
    return {
        "code": code_version(),
        "config": _as_json(config.to_dict()),
        "data": {"training_images": len(training), "validation_images": len(validation)},
        "class_names": list(training.class_names),
    }


@functools.cache
def code_version() -> dict[str, str]:
    """Returns the versions of this package and of JAX, and the commit in a git checkout."""
    versions = {"fastervit_jax": __version__, "jax": jax.__version__}
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return versions
        if result.returncode == 0:
            versions["commit"] = result.stdout.strip()
    return versions


def check_same_run(step: int, saved: dict, run: dict, allow_changes: tuple[str, ...]) -> None:
    """Checks that a checkpoint belongs to this run.

    Args:
        step: step of the checkpoint.
        saved: the `run_identity` that was saved with the checkpoint.
        run: the `run_identity` of this run.
        allow_changes: config keys, or groups of keys (`optimizer`), that may differ.

    Raises:
        ValueError: the run differs. The message lists the differences.
    """
    differences = {
        key: values
        for key, values in _differences(saved, run).items()
        if not any(_is_below(key, group) for group in allow_changes)
    }
    if differences:
        shown = "".join(
            f"\n  {key}: {old!r} in the checkpoint, {new!r} now"
            for key, (old, new) in differences.items()
        )
        if sorted(saved["class_names"]) == sorted(run["class_names"]) and "data.class_names" in (
            differences
        ):
            shown += (
                "\n  The names are the same in another order. Folders are read in natural order "
                "(1, 2, 10), as in timm; earlier versions used plain sorted order. Evaluation "
                "of the run is right, because it matches classes by name."
            )
        raise ValueError(
            f"Cannot resume: the checkpoint of step {step} belongs to another run:{shown}\n"
            "Run the original command again, or use another --workdir. To resume with these "
            f"changes, pass --config.resume.allow_changes={tuple(differences)!r}"
        )


def _differences(saved: dict, run: dict) -> dict[str, tuple]:
    """Returns the saved and the current value of each key that differs."""
    defaults = by_dotted_key(_as_json(default_config().to_dict()))
    # A key that is newer than the checkpoint had its default value.
    old, new = {**defaults, **_stored_keys(saved["config"])}, by_dotted_key(run["config"])
    found = {
        key: (old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not any(_is_below(key, group) for group in _FREE)
    }
    for key in ("training_images", "validation_images"):
        if saved["data"][key] != run["data"][key]:
            found[f"data.{key}"] = (saved["data"][key], run["data"][key])
    if saved["class_names"] != run["class_names"]:
        pairs = zip(saved["class_names"], run["class_names"], strict=False)
        lengths = (len(saved["class_names"]), len(run["class_names"]))
        found["data.class_names"] = next((p for p in pairs if p[0] != p[1]), lengths)
    return found


def _stored_keys(config: dict) -> dict:
    """Returns a stored config by dotted key, with the current names of the keys."""
    return {NEW_NAMES.get(key, key): value for key, value in by_dotted_key(config).items()}


def _as_json(value):
    """Converts tuples to lists, as in JSON."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, tuple | list) else value


def _is_below(key: str, group: str) -> bool:
    return key == group or key.startswith(group + ".")
