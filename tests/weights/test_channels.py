"""Weights for RGB images in networks for other channels: adapted, or refused with a sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model, predict, save_model
from fastervit_jax.commands.export import export_model
from fastervit_jax.evaluation.run import evaluate_weights
from fastervit_jax.training.finetuning import load_initial_model
from fastervit_jax.weights.loading import Weights, describe, load_model, open_weights
from fastervit_jax.weights.names import to_torch_layout, torch_name
from fastervit_jax.weights.tensors import StoredTensor
from tests.evaluation.photo_folders import write_folder
from tests.small.network import SMALL, small_model
from tests.small.run import small_config
from tests.small.weights import arrays

NAME = "faster_vit_0_224"


@pytest.fixture(scope="module")
def model():
    model = small_model()
    describe(model, NAME)
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    save_model(model, folder / "rgb")
    for channels in (1, 4):
        with pytest.warns(UserWarning, match="for 3 channels"):
            other = create_model(NAME, weights=folder / "rgb", in_chans=channels)
        save_model(other, folder / str(channels))
    return folder


def _as_official(model) -> Weights:
    tensors = {}
    for key, array in arrays(model).items():
        theirs = to_torch_layout(array, key)
        tensors[torch_name(key)] = StoredTensor(
            theirs.shape, "float32", lambda theirs=theirs: theirs
        )
    return Weights("official.pth", "official", tensors, None)


@pytest.mark.parametrize("kind", ["converted", "official"])
@pytest.mark.parametrize(
    ("channels", "line", "as_rgb"),
    [
        (1, "The stem's kernel for 3 channels is summed for 1.", (1, 1, 1)),
        # Red stands at two of the four places.
        (4, "The stem's kernel for 3 channels is repeated, times 3/4, for 4.", (1.5, 0.75, 0.75)),
    ],
)
def test_logits_of_equal_channels(model, saved, channels, line, as_rgb, kind):
    weights = open_weights(saved / "rgb") if kind == "converted" else _as_official(model)
    options = SMALL if kind == "official" else {}
    loaded = load_model(NAME, weights, {**options, "in_chans": channels})
    assert line in loaded.lines
    images = np.random.default_rng(0).standard_normal((1, 128, 128, 1)).astype(np.float32)
    expected = _logits(model, jnp.asarray(images * np.asarray(as_rgb, np.float32)))
    found = _logits(loaded.model, jnp.asarray(images.repeat(channels, axis=3)))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@nnx.jit
def _logits(model, images):
    return model(images)


def test_nothing_is_adapted_unasked(saved):
    again = create_model(NAME, weights=saved / "1")
    assert again.config.in_chans == 1
    with pytest.raises(
        ValueError, match=r"wrong shape \(1\): stem.conv1.kernel \(expected 3×3×3×8"
    ):
        create_model(NAME, weights=saved / "1", in_chans=3)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_are_rgb(saved, tmp_path, channels):
    """Prediction, evaluation and training refuse other channels."""
    model = create_model(NAME, weights=saved / str(channels))
    folder = write_folder(tmp_path / "images", [str(n) for n in range(10)], 1)
    with pytest.raises(ValueError, match=f"in_chans={channels}: images are read as RGB"):
        predict(model, folder)
    with pytest.raises(ValueError, match=f"in_chans={channels}: images are read as RGB"):
        evaluate_weights(str(saved / str(channels)), f"folder:{folder}")
    config = small_config(tmp_path, finetune__weights=str(saved / str(channels)))
    config.model.update({**SMALL, "num_heads": None, "ct_size": None})
    with pytest.raises(ValueError, match=f"finetune.weights.*in_chans={channels}"):
        load_initial_model(config, jnp.float32)


@pytest.mark.slow
def test_export_of_four_channels(saved, tmp_path):
    model = create_model(NAME, weights=saved / "4")
    assert export_model(model, tmp_path / "exported", format="stablehlo") < 1e-4
    images = json.loads((tmp_path / "exported" / "model.json").read_text())["images"]
    assert images == {"shape": ["batch", 128, 128, 4], "dtype": "float32"}
    file = (tmp_path / "exported" / "program.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(file))
    stored = np.load(tmp_path / "exported" / "weights.npz")
    batch = np.ones((3, 128, 128, 4), np.float32)
    assert program.call([stored[name] for name in stored.files], batch).shape == (3, 10)
