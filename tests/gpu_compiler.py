"""For tests that compile for GPUs that are not there."""

import importlib.util

import pytest

needs_gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs the GPU compiler: pip install jax-cuda13-plugin jax-cuda13-pjrt",
)
