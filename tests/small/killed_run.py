"""The smallest run with the whole recipe on, as commands that can be killed.

Forty pictures, eight images a step in two parts; mixing, erasing, RandAugment, drop path,
MESA and the EMA are on. Compiled programs are kept, so that a restart takes seconds.
(Not those of several processes, which JAX compiles anew.)
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.small.run import ROOT, as_flags

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
    "ema_decay": 0.9,
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
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # A step takes a minute to optimise and a second to run.
        "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "PYTHONUNBUFFERED": "1",
    }


def start(
    workdir: Path, data: Path, cache: Path, *, processes: int, devices: int = 1, **changes
) -> list[subprocess.Popen]:
    """Starts train.py as so many processes, each with so many devices."""
    flags = command(workdir, data, **changes)
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flags += [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [*flags, f"--process_id={number}"] if processes > 1 else flags,
            cwd=ROOT,
            env=environment(cache, devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def outputs_of(started: list[subprocess.Popen]) -> list[str]:
    """Waits for processes, which must end well; what each of them printed."""
    try:
        outputs = [process.communicate(timeout=1500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs


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


def final_state(workdir: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, of this step, by name, read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    checkpoints = workdir / "checkpoints"
    assert max(int(path.name) for path in checkpoints.iterdir()) == step
    reader, arrays = ocp.PyTreeCheckpointer(), {}
    for part in ("model", "average", "training"):
        path = checkpoints.resolve() / str(step) / part
        shapes = reader.metadata(path).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        leaves = jax.tree_util.tree_leaves_with_path(reader.restore(path, restore_args=args))
        arrays |= {part + jax.tree_util.keystr(key): array for key, array in leaves}
    return arrays


def differences(workdir: Path, whole: Path, step: int = STEPS, *, arrays: int = 300) -> list[str]:
    """What differs between two finished runs: the state, of more than so many arrays; records."""
    states = final_state(workdir, step), final_state(whole, step)
    assert len(states[0]) > arrays
    found = [n for n in states[1] if not np.array_equal(states[0].get(n), states[1][n])]
    found += sorted(set(states[0]) - set(states[1]))
    if records(workdir) != records(whole):
        found.append("metrics.jsonl")
    return found
