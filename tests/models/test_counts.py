"""Parameters of the published networks, counted without allocating them (REFERENCE.md §1)."""

import jax
import pytest
from flax import nnx

from fastervit_jax.models import FasterViT, abstract_model, list_models, variant_config

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


@pytest.mark.parametrize("name", MEASURED)
def test_parameter_counts(name):
    parameters = nnx.state(abstract_model(variant_config(name)), nnx.Param)
    leaves = jax.tree.leaves(parameters)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == MEASURED[name]


def test_every_model_has_an_any_res_sibling():
    assert len(list_models()) == 22
    assert set(list_models()) - set(list_models("*any_res")) == set(MEASURED)


def test_abstract_model_is_the_one_that_is_built():
    config = variant_config("faster_vit_0_224", dim=8, in_dim=8, depths=(1, 1, 1, 1))
    built = nnx.eval_shape(lambda: FasterViT(config, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(abstract_model(config)) == nnx.graphdef(built)
