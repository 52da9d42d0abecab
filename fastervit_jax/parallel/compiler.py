"""Options of the compiler that made programs faster on a platform (benchmarks/NOTES.md)."""

import os

from jax.sharding import Mesh

GPU_OPTIONS: dict[str, bool | str] = {
    # Products by cuBLASLt, which adds the bias and computes the GELU without a pass of its own.
    "xla_gpu_enable_cublaslt": True,
    "xla_gpu_enable_triton_gemm": False,
    # CUDA graphs of everything but collectives: a step starts a thousand kernels.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE,"
    "DYNAMIC_SLICE_FUSION",
}


def is_gpu(mesh: Mesh) -> bool:
    """Returns whether the devices of a mesh are GPUs."""
    return mesh.devices.flat[0].platform in ("gpu", "cuda")


def compiler_options(mesh: Mesh) -> dict[str, bool | str]:
    """What to give `jax.jit(…, compiler_options=…)` for the devices of a mesh.

    An option that the environment variable `XLA_FLAGS` names is left to it.
    """
    if not is_gpu(mesh):
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in GPU_OPTIONS.items() if name not in flags}
