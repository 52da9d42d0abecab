"""Trains a FasterViT: train.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE …].

With --compile_for=TOPOLOGY, such as v5e:16x16, it trains nothing: it says whether the run would fit
a TPU pod that need not be there, and how fast it would be.
"""

from absl import flags
from ml_collections import config_flags

from fastervit_jax.commands import flags as cli

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe: a file of configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory, local or remote, for checkpoints, metrics and pictures."
)
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for", None, "Compile for this TPU topology, such as v5e:16x16, instead of training."
)
_join_hosts = cli.define_host_flags()
_keep_programs = cli.define_cache_flag()
flags.mark_flags_as_required(["config"])


def main(_) -> None:
    """Trains, or compiles for a pod."""
    if _COMPILE_FOR.value:
        from fastervit_jax.analysis.compile_for import compile_for, describe

        print(describe(compile_for(_CONFIG.value, _COMPILE_FOR.value)))
        return
    if not _WORKDIR.value:
        raise ValueError("Give --workdir, where the run is written, or --compile_for.")
    _keep_programs()
    _join_hosts()
    from fastervit_jax.parallel.agreement import check_hosts_agree
    from fastervit_jax.training.loop import train

    check_hosts_agree(_CONFIG.value, _WORKDIR.value)
    evaluation = train(_CONFIG.value, _WORKDIR.value)
    if evaluation is not None:
        print(f"top-1 {evaluation.top1:.2%} on {evaluation.images} held-out images")


if __name__ == "__main__":
    cli.run(main)
