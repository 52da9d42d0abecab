"""Compiler options for programs that run once or twice: compiled in a third of the time."""

import jax


def _known(option: str, value) -> bool:
    """Whether this JAX's compiler has such an option."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


# What a program does matters in these tests and not its speed: LLVM need not optimise it, nor XLA
# make one loop of what it can leave as several.
QUICK_COMPILATION = {
    option: value
    for option, value in {
        "xla_backend_optimization_level": 0,
        "xla_cpu_use_fusion_emitters": False,
    }.items()
    if _known(option, value)
}


def quick_jit(function, **options):
    """`jax.jit` for what runs once or twice."""
    return jax.jit(function, compiler_options=QUICK_COMPILATION, **options)
