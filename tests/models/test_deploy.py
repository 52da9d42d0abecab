"""The deployed network computes the same, with less, and has nothing to train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.deploy import Constant, make_constant
from fastervit_jax.models.layers import BatchNorm
from tests.small.network import small_model

CASES = {
    "square": ("faster_vit_3_224", dict(depths=(1, 1, 2, 1), layer_scale_conv=0.7)),
    "wide any_res, layer norm": (
        "faster_vit_0_any_res",
        dict(resolution=(100, 170), layer_norm_last=True),
    ),
    "large window": ("faster_vit_0_any_res", dict(resolution=64, window_size=(4, 4, 12, 4))),
    "pooled features": ("faster_vit_0_224", dict(num_classes=0, hat=(False,) * 4)),
}


def outputs(model, images):
    @nnx.jit
    def run(model, images):
        maps = model.features(images)
        return model.classify(maps[-1]), maps

    return run(model, images)


def arrays(model, kind=...):
    return jax.tree.leaves(nnx.state(model, kind))


@pytest.mark.parametrize("case", CASES)
def test_same_outputs(case):
    name, options = CASES[case]
    model = small_model(name, drop_path_rate=0.5, drop_rate=0.1, **options)
    images = jax.random.normal(jax.random.key(0), (2, *model.config.resolution, 3))
    logits, maps = outputs(model, images)
    before = [np.array(array) for array in arrays(model)]
    deployed = model.deploy()
    deployed.train()
    deployed_logits, deployed_maps = outputs(deployed, images)

    for ours, theirs in zip([deployed_logits, *deployed_maps], [logits, *maps], strict=True):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    for array, old in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(array, old, err_msg="the model itself is unchanged")


def test_nothing_can_be_trained():
    deployed = small_model().deploy()
    assert not arrays(deployed, nnx.Param) and not arrays(deployed, nnx.BatchStat)
    kinds = {type(variable) for _, variable in nnx.to_flat_state(nnx.state(deployed))}
    assert kinds == {Constant}
    assert not any(isinstance(module, BatchNorm) for _, module in nnx.iter_modules(deployed))


def test_position_networks_are_gone():
    deployed = small_model().deploy()
    names = {path[-2] for path, _ in nnx.to_flat_state(nnx.state(deployed))}
    assert "hidden" not in names and "out" not in names and "network" in names


def test_large_biases_stay_tables():
    """A bias of 12² tokens has 20,736 numbers per head, its table 23²."""
    name, options = CASES["large window"]
    deployed = small_model(name, **options).deploy()
    attention = deployed.stages[2].blocks[0].window_layer.attention
    assert attention.position_bias.network.value.shape == (23**2, 8)
    attention = deployed.stages[3].blocks[0].window_layer.attention
    assert attention.position_bias.value.shape == (16, 16, 16)


def test_any_size():
    """The backbone of a detector takes images of other sizes.

    Deployed, it does where its positions fit. One window has no carrier tokens at all.
    """
    options = dict(pad_all_stages=True, depths=(1, 1, 2, 1))
    model = small_model("faster_vit_0_any_res", **options)
    deployed = model.deploy()
    for shape in ((1, 100, 128, 3), (1, 64, 40, 3), (1, 128, 192, 3)):
        images = jax.random.normal(jax.random.key(0), shape)
        logits, _ = outputs(model, images)
        np.testing.assert_allclose(outputs(deployed, images)[0], logits, atol=1e-5)
    with pytest.raises(ValueError, match="the model was deployed for another one"):
        outputs(deployed, jnp.zeros((1, 192, 192, 3)))


def test_biases_of_a_type():
    """What a call would convert is converted: a GPU would start a kernel for each bias."""
    deployed = small_model(dtype=jnp.bfloat16).deploy()
    types = {
        path[-2:]: variable[...].dtype for path, variable in nnx.to_flat_state(nnx.state(deployed))
    }
    assert types["conv1", "bias"] == types["qkv", "bias"] == types["qkv", "kernel"] == jnp.bfloat16
    assert types["convolution", "bias"] == types["head", "bias"] == jnp.float32


def test_a_layer_without_a_type():
    """It computes in the type of its arrays and input, so its arrays stay as they are."""
    layer = nnx.Linear(2, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    make_constant(layer)
    assert layer.kernel[...].dtype == layer.bias[...].dtype == jnp.bfloat16


def test_another_head():
    """A head that is not one linear layer takes nothing up."""
    model = small_model()
    model.head = nnx.Sequential(nnx.Linear(64, 8, rngs=nnx.Rngs(0)), jax.nn.relu)
    images = jax.random.normal(jax.random.key(0), (1, 128, 128, 3))
    logits, _ = outputs(model, images)
    deployed_logits, _ = outputs(model.deploy(), images)
    np.testing.assert_allclose(deployed_logits, logits, atol=1e-5)


def test_bfloat16():
    """Rounds elsewhere than the model, and as little."""
    images = jax.random.normal(jax.random.key(0), (2, 128, 128, 3))
    exact, _ = outputs(small_model(), images)
    logits, _ = outputs(small_model(dtype=jnp.bfloat16).deploy(), images)
    assert logits.dtype == jnp.float32
    assert np.abs(logits - exact).max() < 0.02 * np.abs(exact).max()


def test_twice():
    with pytest.raises(ValueError, match="already deployed"):
        small_model().deploy().deploy()
