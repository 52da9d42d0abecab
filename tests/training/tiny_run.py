"""The smallest run with the whole recipe on, as commands that can be killed.

Forty pictures, eight images a step in two parts; mixing, erasing, RandAugment, drop path,
MESA and the moving average are on. Compiled programs are kept, so that a restart takes seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.training.small_run import ROOT, as_flags

FLAGS = {
    "model.name": "faster_vit_0_224",
    "model.num_classes": 4,
    "model.dtype": "float32",
    "model.resolution": 64,
    "model.window_size": (2, 2, 2, 2),
    "model.ct_size": 1,
    "model.depths": (1, 1, 1, 1),
    "model.num_heads": (1, 1, 2, 2),
    "model.dim": 8,
    "model.in_dim": 8,
    "model.drop_path_rate": 0.2,
    "data.num_workers": 0,
    "batch_size": 8,
    "accumulate": 2,
    "epochs": 2,
    "cooldown_epochs": 0,
    "optimizer.warmup_epochs": 1.0,
    "mesa.start": 0.1,
    "average_decay": 0.9,
    "evaluation.batch_size": 8,
    "checkpoint.every_steps": 2,
    "log_every_steps": 1,
}
EPOCH_STEPS = 5
STEPS = 10
TIMES = {"images_per_second", "step_seconds", "waiting_share", "memory_gib"}


def write_images(root: Path, per_class: int = 10) -> None:
    """Writes `train/` and `validation/`, four classes of noisy squares each."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label in range(4):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                image = rng.integers(0, 100, (40, 40, 3), np.uint8)
                image[5 * label : 5 * label + 20, 10:30] += 120
                Image.fromarray(image).save(folder / f"{number}.png")


def command(workdir: Path, data: Path, **changes) -> list[str]:
    """train.py's command line; changes are config keys with `__` for dots."""
    flags = {
        **FLAGS,
        "data.train": f"folder:{data}/train",
        "data.validation": f"folder:{data}/validation",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return [
        sys.executable,
        "train.py",
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        *as_flags(flags),
    ]


def environment(cache: Path, devices: int = 1) -> dict[str, str]:
    """Variables for such a process: CPU devices, and where compiled programs are kept."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "PYTHONUNBUFFERED": "1",
    }


def run(workdir: Path, data: Path, cache: Path, *, devices: int = 1, **changes):
    """Runs train.py to its end."""
    return subprocess.run(
        command(workdir, data, **changes),
        cwd=ROOT,
        env=environment(cache, devices),
        capture_output=True,
        text=True,
        timeout=3600,
    )


def records(workdir: Path) -> list[dict]:
    """`metrics.jsonl` without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint by name, read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    names = ("model", "average", "training")
    args = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in names})
    options = ocp.CheckpointManagerOptions(create=False)
    with ocp.CheckpointManager(workdir.resolve() / "checkpoints", options=options) as manager:
        assert manager.latest_step() == STEPS
        restored = manager.restore(STEPS, args=args)
    leaves = jax.tree_util.tree_leaves_with_path({name: restored[name] for name in names})
    return {jax.tree_util.keystr(path): np.asarray(array) for path, array in leaves}


def differences(workdir: Path, whole: Path) -> list[str]:
    """What differs between two finished runs: arrays of the state, and records."""
    states = final_state(workdir), final_state(whole)
    assert len(states[0]) > 300
    found = [n for n in states[1] if not np.array_equal(states[0].get(n), states[1][n])]
    found += sorted(set(states[0]) - set(states[1]))
    if records(workdir) != records(whole):
        found.append("metrics.jsonl")
    return found
