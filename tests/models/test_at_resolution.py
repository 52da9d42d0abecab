"""The same weights at another size: what is shared, kept and refused.

`tests/reference/test_at_resolution.py` compares the results with the official networks.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model, save_model
from fastervit_jax.models import abstract_model, variant_config
from tests.small.network import SMALL, small_model


def test_is_the_any_res_network_of_that_size():
    model = small_model()
    for size in ((128, 128), (96, 160), (225, 225), (64, 64), (50, 333)):
        sibling = variant_config("faster_vit_0_any_res", **SMALL | dict(resolution=size))
        resized = model.at_resolution(size)
        assert resized.config == sibling
        built = jax.tree.map(jnp.shape, nnx.state(abstract_model(sibling)))
        if size == (64, 64):
            # One window: the any_res network owns the tokenizer, which this size leaves unused.
            assert resized.stages[2].carrier_tokenizer is not None
        assert jax.tree.map(jnp.shape, nnx.state(resized)) == built


def test_shares_weights_and_keeps_the_mode():
    model = small_model()
    resized = model.at_resolution((96, 160))
    theirs = dict(nnx.to_flat_state(nnx.state(resized)))
    ours = dict(nnx.to_flat_state(nnx.state(model)))
    assert theirs and all(variable is ours[path] for path, variable in theirs.items())
    assert resized.norm.use_running_average
    model.train()
    assert not model.at_resolution(128).norm.use_running_average
    assert model.config.resolution == (128, 128)
    assert model.stages[2].blocks[0].carrier_position is not None, "the model itself is unchanged"


def test_features_at_a_detectors_size():
    """800×1333, with the real number 0's geometry."""
    model = abstract_model(variant_config("faster_vit_0_224")).at_resolution((800, 1333))
    model.eval()
    images = jax.ShapeDtypeStruct((1, 800, 1333, 3), jnp.float32)
    maps = nnx.eval_shape(lambda m, x: m.features(x), model, images)
    assert [x.shape for x in maps] == [
        (1, 200, 334, 64),
        (1, 100, 167, 128),
        (1, 50, 84, 256),
        (1, 25, 42, 512),
    ]


def test_carries_a_replaced_head():
    model = small_model()
    model.head = nnx.Linear(model.num_features, 3, rngs=nnx.Rngs(0))
    assert model.at_resolution((64, 96)).head.kernel is model.head.kernel


def test_saved_and_loaded(tmp_path):
    """A resized model saves as its any_res sibling, with its size and preprocessing."""
    model = create_model("faster_vit_0_224", **SMALL | dict(depths=(0, 0, 1, 0)))
    resized = model.at_resolution((96, 160))
    assert resized.name == "faster_vit_0_any_res"
    assert resized.preprocessing.resolution == (96, 160)
    save_model(resized, tmp_path / "saved")
    loaded = create_model("faster_vit_0_any_res", weights=tmp_path / "saved")
    assert loaded.config == resized.config
    states = (nnx.state(one, (nnx.Param, nnx.BatchStat)) for one in (loaded, resized))
    jax.tree.map(np.testing.assert_array_equal, *states)


REFUSED = [
    ("faster_vit_0_224", {}, 0, "Invalid value 0 in resolution"),
    ("faster_vit_0_224", {}, (96, 96, 3), "one side or (height, width)"),
    ("faster_vit_0_224", {}, "96", "Invalid value '96' in resolution"),
    ("faster_vit_0_any_res", dict(resolution=64), 128, "has no weights for their carrier tokens"),
    ("faster_vit_0_any_res", dict(resolution=(96, 160)), 128, "which only square grids"),
]


@pytest.mark.parametrize(("name", "options", "size", "message"), REFUSED)
def test_refusals(name, options, size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small_model(name, **options).at_resolution(size)


def test_after_deployment():
    with pytest.raises(ValueError, match=re.escape("Call model.at_resolution(…).deploy()")):
        small_model().deploy().at_resolution(256)
