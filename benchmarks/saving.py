"""How long a save holds up the training, beside a synchronous one, and what checksums cost.

    python benchmarks/saving.py --model=faster_vit_2_224 --output=benchmarks/results/saving.json

Saves a train state of random numbers (AdamW) some times, each time either waiting for the end, as a
synchronous save would, or going on as soon as `Checkpoints.save` returns: with a step that donates
the state and does next to nothing, so that what copying costs the step behind a save shows. Reads
it back.
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
from fastervit_jax.parallel.mesh import make_mesh
from fastervit_jax.runs.checkpoints import Checkpoints, _on_host, _parts
from fastervit_jax.runs.checksums import checksums
from fastervit_jax.runs.state import TrainState, abstract_state
from fastervit_jax.training.optimizers import make_optimizer

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
    """Seconds of every round, by what was measured; the state is donated."""
    seconds: dict[str, list[float]] = {}

    def timed(what: str, function, *arguments):
        begin = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds.setdefault(what, []).append(time.perf_counter() - begin)
        return result

    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    checkpoints = Checkpoints(directory, keep=1)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, max_to_keep=1)
    plain = ocp.CheckpointManager(os.path.join(directory, "plain"), options=options)

    def save_synchronously(number: int, state: TrainState) -> None:
        parts = {name: ocp.args.StandardSave(part) for name, part in _parts(state).items()}
        plain.save(number, args=ocp.args.Composite(**parts))

    def restore() -> int:
        return checkpoints.restore_newest(shapes, lambda step, about: None)[0]

    for number in range(rounds + 1):
        state = timed("a step alone", step, state)
        timed("checksums alone", checksums, _parts(state))
        timed("copy alone", _on_host, state)
        timed("Orbax, synchronous", save_synchronously, number, state)
        timed("ours, until it returns", checkpoints.save, number, state, {})
        state = timed("a step right behind it", step, state)
        timed("ours, the rest in the background", checkpoints.wait)
        assert timed("restore, with checksums", restore) == number
    checkpoints.close()
    plain.close()
    # The first round compiles.
    return {what: values[1:] for what, values in seconds.items()}


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
