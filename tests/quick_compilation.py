"""Compiler options for programs that run once or twice, which are compiled sooner with them."""

import functools

import jax

# What a program does matters in these tests and not its speed, so LLVM need not optimise it.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


@functools.cache
def quickest_compilation() -> dict:
    """Without XLA's fusion emitters besides, in versions that can do without.

    Float32 draws may then differ between programs in their last digit: not for programs that must
    agree beyond it. A function, because asking XLA ends the time for `jax.distributed.initialize`.
    """
    options = {**QUICK_COMPILATION, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return QUICK_COMPILATION
    return options


def quick_jit(function, **options):
    """`jax.jit` for what runs once or twice."""
    return jax.jit(function, compiler_options=quickest_compilation(), **options)
