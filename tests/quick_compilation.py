"""Compiler options for programs that run once or twice: compiled in a third of the time."""

import jax


def _understood(options: dict) -> dict:
    """The options that this version of XLA has: these are for its own developers."""
    kept = {}
    for name, value in options.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        kept[name] = value
    return kept


# What a program does matters in these tests and not its speed, so LLVM need not optimise it.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0}
# Nor need XLA emit every fusion on its own. Without that, float32 draws may differ between programs
# in their last digit: not for programs that must agree beyond it.
QUICKEST_COMPILATION = _understood({**QUICK_COMPILATION, "xla_cpu_use_fusion_emitters": False})


def quick_jit(function, **options):
    """`jax.jit` for what runs once or twice."""
    return jax.jit(function, compiler_options=QUICKEST_COMPILATION, **options)
