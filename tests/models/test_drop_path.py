"""Drop path: linear rates; windows, images and carriers as units; independent draws; expectation.

Blocks are given weights with which each branch adds a known constant to its input, so what was
dropped can be read off the output.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models import variant_config
from fastervit_jax.models.layers import DropPath
from tests.small.network import SMALL, small_model

RATE = 0.5
KEPT = 1 / (1 - RATE)
IMAGES, GRID = 64, (2, 2)


def test_rates_are_linear_over_all_blocks():
    config = variant_config("faster_vit_6_224")
    rates = [rate for stage in range(4) for rate in config.drop_path_rates(stage)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.5, 30))
    one = variant_config("faster_vit_0_224", **{**SMALL, "depths": (0, 0, 1, 0)})
    assert one.drop_path_rates(2) == (0.0,)


def test_expectation_and_scale():
    module = DropPath(0.3)
    ones = jnp.ones((20_000, 2, 3))
    out = np.asarray(module(ones, rngs=nnx.Rngs(dropout=0)))
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1], out.shape))
    assert set(np.unique(out)) == {np.float32(0), np.float32(1) / np.float32(1 - 0.3)}
    # Four standard deviations of the mean of 20,000 draws.
    assert abs(out.mean() - 1) < 4 * np.sqrt(0.3 / 0.7 / 20_000)


def fair(draws: np.ndarray) -> bool:
    """Whether booleans may be draws of probability ½: within four standard deviations."""
    return abs(draws.mean() - 0.5) < 4 * 0.5 / np.sqrt(draws.size)


def test_convolution_blocks_drop_images():
    model = small_model(depths=(2, 0, 0, 0), drop_path_rate=RATE)
    model.train()
    block = model.stages[0].blocks[1]
    block.norm2.scale[...] = jnp.zeros(8)
    block.norm2.bias[...] = jnp.ones(8)
    x = jax.random.normal(jax.random.key(0), (IMAGES, 4, 4, 8))
    run = nnx.jit(lambda block, x, rngs: block(x, rngs))
    added = np.asarray(run(block, x, nnx.Rngs(dropout=0)) - x)
    per_image = added[:, 0, 0, 0].round(4)
    np.testing.assert_allclose(
        added, np.broadcast_to(per_image[:, None, None, None], added.shape), atol=1e-5
    )
    assert set(per_image) == {0, KEPT}
    assert fair(per_image > 0)


@pytest.fixture(scope="module")
def added():
    """What a hierarchical block adds to windows and to carrier tokens, called twice.

    Its window attention and MLP add 1 and 2, its carriers' attention and MLP 4 and 8, where they
    are not dropped. → [call, image, window], [call, image].
    """
    block = small_model(depths=(0, 0, 2, 0), drop_path_rate=RATE).stages[2].blocks[1]
    layers = [
        block.window_layer.attention.projection,
        block.window_layer.mlp.contract,
        block.carrier_layer.attention.projection,
        block.carrier_layer.mlp.contract,
    ]
    for value, layer in zip((1, 2, 4, 8), layers, strict=True):
        layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
        layer.bias[...] = jnp.full_like(layer.bias[...], value)

    keys = jax.random.split(jax.random.key(1))
    windows = jax.random.normal(keys[0], (IMAGES * 4, 16, 32))
    carriers = jax.random.normal(keys[1], (IMAGES, 4 * 4, 32))
    run = nnx.jit(lambda block, rngs: block(windows, carriers, GRID, rngs))
    block.eval()
    all_windows, all_carriers = run(block, None)
    block.train()
    rngs = nnx.Rngs(dropout=0)
    of_windows, of_carriers = [], []
    for _ in range(2):
        out_windows, out_carriers = run(block, rngs)
        difference = np.asarray(out_windows - all_windows).reshape(IMAGES, 4, 16 * 32) + (1 + 2)
        assert np.ptp(difference, axis=-1).max() < 1e-4, "a window is dropped as a whole"
        of_windows.append(difference[..., 0].round(3))
        difference = np.asarray(out_carriers - all_carriers).reshape(IMAGES, 4, 4 * 32)
        difference = difference + (1 + 2 + 4 + 8) - of_windows[-1][..., None]
        assert np.ptp(difference, axis=(1, 2)).max() < 1e-4, "and an image's carriers are"
        of_carriers.append(difference[:, 0, 0].round(3))
    return np.stack(of_windows), np.stack(of_carriers)


def test_windows_and_an_images_carriers_are_the_units(added):
    of_windows, of_carriers = added
    assert set(of_windows.ravel()) == {0, 1 * KEPT, 2 * KEPT, 3 * KEPT}
    assert set(of_carriers.ravel()) == {0, 4 * KEPT, 8 * KEPT, 12 * KEPT}
    assert np.ptp(of_windows, axis=2).max() > 0, "windows of one image differ"


def test_every_branch_and_call_draws_anew(added):
    of_windows, of_carriers = (branch.astype(int) // int(KEPT) for branch in added)
    attention, mlp = of_windows % 2 == 1, of_windows >= 2
    carrier_attention, carrier_mlp = of_carriers % 8 == 4, of_carriers >= 8
    for kept in (attention, mlp, carrier_attention, carrier_mlp):
        assert fair(kept)
        assert fair(kept[0] == kept[1]), "the second call draws anew"
    assert fair(attention == mlp)
    assert fair(carrier_attention == carrier_mlp)
    assert fair(attention[:, :, 0] == carrier_attention)
    assert fair(mlp[:, :, 0] == carrier_mlp)


def test_the_same_seed_draws_the_same():
    module = DropPath(RATE)
    ones = jnp.ones((100, 2))
    first, again, other = (module(ones, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
