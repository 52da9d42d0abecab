"""What each device holds, and what devices send each other in a step."""

import math

import jax
import pytest

from fastervit_jax.analysis import hlo, tpu_cost
from fastervit_jax.models import variant_config
from fastervit_jax.models.fastervit import abstract_model
from fastervit_jax.parallel.mesh import make_mesh
from fastervit_jax.runs.state import abstract_state
from fastervit_jax.training.optimizers import make_optimizer
from tests.parallel.test_meshes import run


def _share(name: str, optimizer: str, fsdp: int) -> float:
    """A device's share of parameters, moments and averages, on shapes alone."""
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:fsdp])
    optimizer = make_optimizer(optimizer, learning_rate=1e-3, weight_decay=0.1)
    state = abstract_state(abstract_model(variant_config(name)), optimizer, mesh)
    leaves = jax.tree.leaves((state.params, state.optimizer, state.ema))
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    return held / sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("fsdp", [2, 4, 8])
@pytest.mark.parametrize(
    "name, optimizer", [("faster_vit_0_224", "adamw"), ("faster_vit_4_224", "lamb")]
)
def test_a_device_holds_its_share(name, optimizer, fsdp):
    assert _share(name, optimizer, fsdp) == pytest.approx(1 / fsdp, rel=0.05)


def _traffic(mesh) -> tuple[dict, int, int]:
    """Bytes a step by kind of collective, of parameters, and of statistics."""
    _, state, compiled = run(mesh, group_size=2, steps=1)
    kinds: dict[str, int] = {}
    for (kind, _), (_, total) in tpu_cost.cost(hlo.parse(compiled.as_text())).collectives.items():
        kinds[kind] = kinds.get(kind, 0) + total
    sizes = (sum(a.nbytes for a in part.values()) for part in (state.params, state.statistics))
    return kinds, *sizes


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_averages_once():
    """Batch norm stays in groups on a device here, so that only parameters and gradients move."""
    kinds, parameters, statistics = _traffic((1, 8, 1))
    assert set(kinds) == {"all-gather", "all-reduce"}
    # The network's and the teacher's, whose statistics come along; 5 numbers cannot be split.
    assert kinds["all-gather"] == pytest.approx(2 * parameters + statistics, rel=1e-3)
    # Gradients are summed, those of the networks of positions where they are smallest.
    assert parameters / 4 < kinds["all-reduce"] < parameters


@pytest.mark.slow
def test_data_parallel_sums_gradients_and_nothing_else():
    kinds, parameters, _ = _traffic((8, 1, 1))
    assert set(kinds) == {"all-reduce"}
    assert parameters / 4 < kinds["all-reduce"] < parameters
