"""Parts of the recipe: batch norm in groups, layer decay, frozen modules."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.layers import BatchNorm
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.training.finetuning import (
    check_frozen,
    is_frozen,
    learning_rate_multiplier,
)
from tests.training.test_step import NETWORK, small_network


def test_batch_norm_in_groups_is_the_groups_one_by_one():
    images = np.random.default_rng(0).standard_normal((8, 4, 4, 3)).astype(np.float32)
    images *= np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    together = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    together.group_size = 4
    outputs, means, variances = [], [], []
    for part in (images[:4], images[4:]):
        alone = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
        outputs.append(alone(part))
        means.append(alone.mean[...])
        variances.append(alone.var[...])
    result = together(images)
    np.testing.assert_allclose(result, np.concatenate(outputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.mean[...], np.mean(means, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(together.var[...], np.mean(variances, 0), rtol=1e-5)
    ungrouped = BatchNorm(3, epsilon=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert np.abs(result - ungrouped(images)).max() > 0.1


def test_layer_decay_grows_towards_the_head():
    names = [
        "stem.conv1.kernel",
        "stages.0.blocks.0.conv1.kernel",
        "downsamples.0.conv.kernel",
        "stages.1.blocks.0.conv1.kernel",
        "stages.2.carrier_tokenizer.convolution.kernel",
        "stages.3.blocks.0.window_layer.mlp.expand.kernel",
        "head.kernel",
    ]
    found = [learning_rate_multiplier(name, NETWORK, 0.5) for name in names]
    assert found == [0.5**5, 0.5**4, 0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]


def test_frozen_modules_are_named_by_prefix():
    names = list(arrays_of(small_network())[0])
    assert is_frozen("stages.0.blocks.0.conv1.kernel", ("stages.0",))
    assert not is_frozen("stages.1.blocks.0.conv1.kernel", ("stages.0",))
    check_frozen(names, ("stem", "stages.0"))
    with pytest.raises(ValueError, match=r"stages\.9"):
        check_frozen(names, ("stages.9",))
    with pytest.raises(ValueError, match="nothing to train"):
        check_frozen(names, ("stem", "stages", "downsamples", "norm", "head"))
