"""Parameters of the published networks, counted without allocating them.

The expected numbers are in docs/reference/numbers.md, section 1.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fastervit_jax.analysis.multiply_adds import dino_multiply_adds, multiply_adds
from fastervit_jax.detection.config import dino_config
from fastervit_jax.detection.dino import FAMILY
from fastervit_jax.models import FasterViT, abstract_model, list_models, variant_config

ROOT = Path(__file__).parents[2]
MEASURED = {
    "faster_vit_0_224": 31_404_840,
    "faster_vit_1_224": 53_366_696,
    "faster_vit_2_224": 75_923_816,
    "faster_vit_3_224": 159_547_944,
    "faster_vit_4_224": 365_555_712,
    "faster_vit_5_224": 957_520_552,
    "faster_vit_6_224": 1_360_328_872,
    "faster_vit_4_21k_224": 271_944_224,
    "faster_vit_4_21k_384": 271_944_224,
    "faster_vit_4_21k_512": 271_944_224,
    "faster_vit_4_21k_768": 271_944_224,
}
MEASURED_GMACS = {
    "faster_vit_0_224": 3.49,
    "faster_vit_1_224": 5.50,
    "faster_vit_2_224": 8.97,
    "faster_vit_3_224": 18.71,
    "faster_vit_4_224": 43.23,
    "faster_vit_5_224": 113.97,
    "faster_vit_6_224": 143.99,
    "faster_vit_4_21k_224": 41.59,
    "faster_vit_4_21k_384": 126.56,
    "faster_vit_4_21k_512": 234.09,
    "faster_vit_4_21k_768": 585.10,
}


@pytest.mark.parametrize("name", MEASURED)
def test_parameter_counts(name):
    parameters = nnx.state(abstract_model(variant_config(name)), nnx.Param)
    leaves = jax.tree.leaves(parameters)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == MEASURED[name]


@pytest.mark.parametrize("name", MEASURED_GMACS)
def test_multiply_adds_by_hand(name):
    count = multiply_adds(variant_config(name))
    assert round((count.per_image + count.per_pass) / 1e9, 2) == MEASURED_GMACS[name]


@pytest.mark.parametrize(
    "name",
    [
        "dino_4scale_faster_vit_0_224",
        pytest.param("dino_5scale_faster_vit_4_224", marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_of_detectors(name):
    """By hand and in the traced program, part by part; padding of maps included."""
    config, size = dino_config(name, queries=50), (200, 333)
    network = FAMILY.abstract(config)
    network.eval()
    graph, state = nnx.split(network)
    traced = runpy.run_path(str(ROOT / "benchmarks" / "multiply_adds.py"))["traced"]

    def count(run) -> int:
        images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        program = jax.make_jaxpr(lambda state, images: run(nnx.merge(graph, state), images))
        return traced(program(state, images).jaxpr)

    by_hand = dino_multiply_adds(config, size)
    assert count(lambda network, images: network.maps(images)) == by_hand["backbone"]
    # The trace has references after the last layer, which nothing uses: compilers leave them out.
    unused = config.queries * 256 * (2 * 256 + 4)
    assert count(lambda network, images: network(images)) == sum(by_hand.values()) + unused


def test_every_model_has_an_any_res_sibling():
    assert len(list_models("faster_vit_*")) == 22
    assert set(list_models("faster_vit_*")) - set(list_models("*any_res")) == set(MEASURED)


def test_abstract_model_is_the_one_that_is_built():
    config = variant_config("faster_vit_0_224", dim=8, in_dim=8, depths=(1, 1, 1, 1))
    built = nnx.eval_shape(lambda: FasterViT(config, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(abstract_model(config)) == nnx.graphdef(built)


@pytest.mark.slow
def test_multiply_adds_of_all_and_what_deploying_saves():
    """`benchmarks/deployed.py` counts the numbers in docs/reference/numbers.md."""
    table = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "deployed.py", "--seconds=0"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if "faster_vit" in line]
    assert {name: float(giga) for name, giga, *_ in rows} == MEASURED_GMACS
    assert all(float(deployed) < float(giga) for _, giga, deployed, *_ in rows)
