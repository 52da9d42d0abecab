"""Options of the compiler by platform."""

import types

import numpy as np
import pytest

from fastervit_jax.parallel.compiler import GPU_OPTIONS, compiler_options


def mesh_on(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_other_platforms_have_none(platform):
    assert compiler_options(mesh_on(platform)) == {}


def test_a_user_overrides_an_option(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    found = compiler_options(mesh_on("gpu"))
    assert set(GPU_OPTIONS) - set(found) == {"xla_gpu_enable_triton_gemm"}
