"""Trains a network: fastervit train --config=NAME --workdir=DIR [--config.KEY=VALUE …].

With --compile_for=TOPOLOGY, such as v5e:16x16 or h100:8, it trains nothing. It reports whether the
run would fit these TPUs or GPUs, and how fast it would be. None of them is needed for that.
"""

import os
from collections.abc import Callable

from absl import flags

from fastervit_jax.commands.flags import (
    define_cache_flag,
    define_config_flag,
    define_host_flags,
)


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit train`, and returns what runs it."""
    config = define_config_flag()
    workdir = flags.DEFINE_string(
        "workdir", None, "Directory, local or remote, for checkpoints, metrics and pictures."
    )
    topology = flags.DEFINE_string(
        "compile_for",
        None,
        "TPU topology, such as v5e:16x16, or GPUs, such as h100:8: only compile the step for them.",
    )
    memory_only = flags.DEFINE_bool(
        "memory_only", False, "With --compile_for: stop as soon as the memory of the step is known."
    )
    join_hosts = define_host_flags()
    keep_programs = define_cache_flag()

    def main(_) -> None:
        from fastervit_jax.training.tasks import task_of

        task = task_of(config.value)
        if topology.value:
            from fastervit_jax.analysis.compile_for import compile_for
            from fastervit_jax.analysis.compile_report import describe
            from fastervit_jax.commands.waiting import Waiting

            what = "find the memory of" if memory_only.value else "compile"
            name = f"{what} {config.value.model.name} for {topology.value}"
            with Waiting(name) as waiting:
                step = compile_for(
                    task,
                    config.value,
                    topology.value,
                    memory_only=memory_only.value,
                    say=waiting.say,
                )
            print(describe(step), flush=True)
            if memory_only.value:
                os._exit(0)  # the compiler may still be at work in a thread
            return
        if not workdir.value:
            raise ValueError("Missing --workdir: the directory for what the run writes.")
        keep_programs()
        join_hosts()
        from fastervit_jax.training.loop import train

        evaluation = train(task, config.value, workdir.value)
        if evaluation is not None:
            print(f"Result: {evaluation.sentence()}")

    return main
