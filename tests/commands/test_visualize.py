"""The pictures' numbers are the network's own attention.

`tests/reference/test_attention.py` compares them with the official network's.
"""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fastervit_jax.commands.visualize import attention_weights, draw_carriers, draw_pixel
from tests.small.network import small_model


@pytest.fixture(scope="module")
def model():
    """A wide grid of 2×3 windows of 4×4, four carrier tokens each; the last row is half padding."""
    return small_model("faster_vit_3_any_res", depths=(0, 0, 2, 1), resolution=(100, 170))


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(0), (100, 170, 3))


@pytest.fixture(scope="module")
def layers(model, image):
    return attention_weights(model, image)


def test_every_row_sums_to_one(layers):
    assert [(layer.stage, layer.block) for layer in layers] == [(3, 1), (3, 2), (4, 1)]
    for layer in layers[:2]:
        assert layer.grid == (2, 3) and layer.ct_size == 2
        assert layer.windows.shape == (2, 3, 8, 4 + 16, 4 + 16)
        assert layer.carriers.shape == (8, 4, 6, 4, 6)
        np.testing.assert_allclose(layer.carriers.sum(axis=(-1, -2)), 1, atol=1e-5)
    assert layers[2].carriers is None and layers[2].windows.shape == (1, 2, 16, 16, 16)
    for layer in layers:
        np.testing.assert_allclose(layer.windows.sum(axis=-1), 1, atol=1e-5)
        assert np.ptp(layer.windows) > 0.01


def test_maps(layers):
    for layer in layers[:2]:
        for row in range(2):
            for column in range(3):
                assert layer.region_map(row, column).sum() == pytest.approx(1, abs=1e-5)
    one = layers[0].pixel_map(99, 130)
    # 99 // 16 = 6 and 130 // 16 = 8: row 2 of the second row of windows, column 0 of the third.
    assert one.window == (1, 2) and one.position == (2, 0)
    assert one.tokens.sum() + one.carriers.sum() == pytest.approx(1, abs=1e-5)
    expected = layers[0].windows[1, 2, :, 4 + 2 * 4 + 0].mean(axis=0)
    np.testing.assert_allclose(one.tokens.ravel(), expected[4:])
    np.testing.assert_allclose(one.carriers.ravel(), expected[:4])


def test_they_are_what_the_network_uses(model, image, layers):
    """Halving what an image's first region gives moves exactly what looks at it."""
    changed = attention_weights(model, image.at[:64, :64].mul(0.5))
    difference = np.abs(changed[0].windows - layers[0].windows).max(axis=(2, 3, 4))
    assert difference[0, 0] > 1e-3
    assert np.abs(changed[0].carriers - layers[0].carriers).max() > 1e-5


def test_the_model_is_not_changed(model, image):
    forward = nnx.jit(lambda model, image: model(image[None]))
    before = forward(model, image)
    attention_weights(model, image)
    np.testing.assert_array_equal(forward(model, image), before)
    assert not any("weights" in path for path, _ in nnx.to_flat_state(nnx.state(model)))


def test_of_a_deployed_model(model, image, layers):
    for ours, theirs in zip(attention_weights(model.deploy(), image), layers, strict=True):
        np.testing.assert_allclose(ours.windows, theirs.windows, atol=1e-5)


def test_pictures(layers, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 170, 3), dtype=np.uint8)
    draw_carriers(layers, pixels, tmp_path / "carriers.png")
    draw_pixel(layers, pixels, (50, 60), tmp_path / "pixel.png")
    for name in ("carriers.png", "pixel.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert picture.shape[1] > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    with pytest.raises(
        ValueError,
        match=re.escape("Invalid pixel (100, 3): expected one inside"),
    ):
        draw_pixel(layers, pixels, (100, 3), tmp_path / "outside.png")
    with pytest.raises(ValueError, match="no carrier tokens"):
        draw_carriers(layers[2:], pixels, tmp_path / "none.png")
