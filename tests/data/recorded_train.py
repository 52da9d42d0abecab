"""train.py, writing down every image it reads in a line of WORKDIR.read_N, by process N."""

import jax

import train
from fastervit_jax.commands import flags as cli
from fastervit_jax.data import batches

_read = batches._read


def _recorded(source, index):
    example = _read(source, index)
    with open(f"{train._WORKDIR.value}.read_{jax.process_index()}", "a") as file:
        file.write(f"{example.key}\n")
    return example


if __name__ == "__main__":
    batches._read = _recorded
    cli.run(train.main)
