"""train.py, writing down every image it reads in a line of WORKDIR.read_N, by process N."""

import jax
from absl import flags

from fastervit_jax.commands.flags import run
from fastervit_jax.commands.train import command
from fastervit_jax.data import loader

_read = loader._read


def _recorded(source, index):
    example = _read(source, index)
    with open(f"{flags.FLAGS.workdir}.read_{jax.process_index()}", "a") as file:
        file.write(f"{example.key}\n")
    return example


if __name__ == "__main__":
    loader._read = _recorded
    run(command())
