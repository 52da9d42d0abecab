"""Compiler options for programs that run once or twice: compiled in half the time."""

import jax

# What a program does matters in these tests and not its speed, so LLVM need not optimise it.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}


def quick_jit(function, **options):
    """`jax.jit` for what runs once or twice."""
    return jax.jit(function, compiler_options=QUICK_COMPILATION, **options)
