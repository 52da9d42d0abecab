"""How long a save holds up the training, beside a synchronous one, and what checksums cost.

    python benchmarks/saving.py --model=faster_vit_2_224 --output=benchmarks/results/saving.json

Saves a train state of random numbers (AdamW) some times, each time either waiting for the end, as a
synchronous save would, or going on as soon as `Checkpoints.save` returns. Reads it back with and
without comparing checksums.
"""

import json
import os
import platform
import statistics
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from fastervit_jax.models import variant_config
from fastervit_jax.models.fastervit import abstract_model
from fastervit_jax.training.checkpoints import Checkpoints, _parts
from fastervit_jax.training.checksums import checksums
from fastervit_jax.training.mesh import make_mesh
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.state import TrainState, abstract_state

_MODEL = flags.DEFINE_string("model", "faster_vit_2_224", "Whose state is saved.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often everything is measured.")
_DIRECTORY = flags.DEFINE_string("directory", None, "Where to save; by default a temporary one.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def random_state(name: str) -> TrainState:
    """A state of normal numbers on all devices."""
    mesh = make_mesh()
    optimizer = make_optimizer("adamw", learning_rate=1e-3, weight_decay=0.05)
    shapes = abstract_state(abstract_model(variant_config(name)), optimizer, mesh)
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, shapes)


def measure(state: TrainState, directory: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, by what was measured."""
    seconds: dict[str, list[float]] = {}

    def timed(what: str, function):
        begin = time.perf_counter()
        result = function()
        seconds.setdefault(what, []).append(time.perf_counter() - begin)
        return result

    arrays = _parts(state)
    checkpoints = Checkpoints(directory, keep=1)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, max_to_keep=1)
    plain = ocp.CheckpointManager(os.path.join(directory, "plain"), options=options)
    parts = {name: ocp.args.StandardSave(part) for name, part in arrays.items()}
    checksums(arrays)  # compiles
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    for step in range(1, rounds + 1):
        timed("checksums alone", lambda: checksums(arrays))
        timed(
            "Orbax, synchronous",
            lambda step=step: plain.save(step, args=ocp.args.Composite(**parts)),
        )
        timed("ours, until it returns", lambda step=step: checkpoints.save(step, state, {}))
        timed("ours, the rest in the background", checkpoints._manager.wait_until_finished)
        restored = timed(
            "restore, with checksums",
            lambda: checkpoints.restore_newest(shapes, lambda step, about: None),
        )
        assert restored[0] == step
    checkpoints.close()
    plain.close()
    return seconds


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    state = random_state(_MODEL.value)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory(dir=_DIRECTORY.value) as directory:
        seconds = measure(state, directory, _ROUNDS.value)
    medians = {what: round(statistics.median(values), 3) for what, values in seconds.items()}
    ratios = [
        ours / synchronous
        for ours, synchronous in zip(
            seconds["ours, until it returns"], seconds["Orbax, synchronous"], strict=True
        )
    ]
    result = {
        "model": _MODEL.value,
        "gigabytes": round(size / 1e9, 3),
        "arrays": len(jax.tree.leaves(state)),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "orbax": ocp.__version__,
        "median_seconds": medians,
        "blocking_share_of_synchronous": round(statistics.median(ratios), 3),
        "seconds": {k: [round(value, 3) for value in values] for k, values in seconds.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if _OUTPUT.value:
        with open(_OUTPUT.value, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    app.run(main)
