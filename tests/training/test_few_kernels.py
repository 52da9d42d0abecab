"""Sharing an operand changes no value, and XLA then merges kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.analysis import gpu_cost, hlo, topology
from fastervit_jax.analysis.chips import GPUS
from fastervit_jax.parallel.mesh import make_mesh, replicated
from fastervit_jax.training import few_kernels
from tests.gpu_compiler import needs_gpu_compiler


def _tree() -> dict[str, jax.Array]:
    draws = np.random.default_rng(0)
    values = {f"bias{i}": draws.normal(size=8) for i in range(3)} | {"one": draws.normal()}
    values |= {
        "broken": np.array([np.nan, np.inf, -0.0, 1e-45, 1, 2, 3, 4]),
        "large": np.ones(2**17),
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


@pytest.mark.parametrize("mesh_axes, shared", [({}, True), ({"fsdp": 2}, False)])
def test_values_stay_the_same(monkeypatch, mesh_axes, shared):
    monkeypatch.setattr(few_kernels, "is_gpu", lambda mesh: True)
    mesh = make_mesh(**mesh_axes)
    tree = _tree()
    program = jax.jit(lambda tree: few_kernels.share_operands(tree, mesh))
    for name, value in program(tree).items():
        assert value.tobytes() == tree[name].tobytes(), name
    # One array for the vectors of 8, one for the scalar.
    text = program.lower(tree).as_text()
    assert ("optimization_barrier" in text) == shared
    assert text.count("call @_where") == (5 if shared else 0)


def test_other_platforms_share_nothing():
    text = (
        jax.jit(lambda tree: few_kernels.share_operands(tree, make_mesh())).lower(_tree()).as_text()
    )
    assert "select" not in text and "barrier" not in text


@needs_gpu_compiler
def test_a_gpu_updates_forty_vectors_in_a_few_kernels():
    mesh = make_mesh(devices=topology.devices("h100"))
    vector = jax.ShapeDtypeStruct((512,), jnp.float32, sharding=replicated(mesh))
    state = {f"bias{i}": vector for i in range(40)}

    def kernels(share) -> int:
        def update(params, moments, gradients):
            gradients = share(gradients, mesh)
            moments = {n: 0.9 * moments[n] + 0.1 * g for n, g in gradients.items()}
            return {n: params[n] - moments[n] for n in params}, moments

        lowered = jax.jit(update, donate_argnums=(0, 1)).lower(state, state, state)
        program = hlo.parse(lowered.compile().as_text())
        return gpu_cost.cost(program, GPUS["h100"]).launches

    assert kernels(lambda tree, mesh: tree) == 40
    assert kernels(few_kernels.share_operands) <= 5
