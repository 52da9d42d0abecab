"""Trains a FasterViT: train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE …].

The same as `fastervit train`; see fastervit_jax/commands/train.py.
"""

from fastervit_jax.commands.flags import run
from fastervit_jax.commands.train import command

if __name__ == "__main__":
    run(command())
