"""Trains a FasterViT: train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE …]."""

from absl import flags
from ml_collections import config_flags

from fastervit_jax import cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe: a file of configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory, local or remote, for checkpoints, metrics and pictures."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(_) -> None:
    """Trains."""
    from fastervit_jax.training.loop import train

    evaluation = train(_CONFIG.value, _WORKDIR.value)
    print(f"top-1 {evaluation.top1:.2%} on {evaluation.images} held-out images")


if __name__ == "__main__":
    cli.run(main)
