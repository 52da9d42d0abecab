"""Wrong use gets a sentence: what was given, what is expected, how to get it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model
from fastervit_jax.models import FasterViTConfig, abstract_model, variant_config
from tests.small.network import SMALL

UNKNOWN = [
    ("faster_vit_0", {}, "Unknown model 'faster_vit_0'. Nearest: faster_vit_"),
    ("fastervit_3_224", {}, "Nearest: faster_vit_3_224"),
    ("resnet50", {}, "All: faster_vit_0_224"),
    (0, {}, "Unknown model 0"),
    ("faster_vit_0_224", dict(depth=3), "Unknown model option 'depth'. Nearest: depths"),
    ("faster_vit_0_224", dict(any_res=True), "any_res is part of a model's name"),
]
SIZES = [
    (dict(resolution=225), "windows of 7×7 do not tile: use a multiple of 112 (224 or 336)"),
    (dict(resolution=225), "The any_res sibling of faster_vit_0_224 is faster_vit_0_any_res"),
    (dict(resolution=(224, 448)), "resolution=224×448 is not square"),
    (dict(resolution=(224, 448)), "sibling of faster_vit_0_224 is faster_vit_0_any_res"),
    (dict(resolution=32), "use a multiple of 112 (112)"),
    (dict(resolution=0), "resolution has 0: give whole numbers of 1 or more"),
    (dict(resolution=-224), "resolution has -224"),
    (dict(resolution=224.0), "resolution has 224.0: give whole numbers"),
    (dict(resolution="224"), "resolution has '224'"),
    (dict(resolution=(224, 224, 3)), "should be one side or (height, width), in pixels"),
    (dict(window_size=7), "window_size=7 should be a value for each of the four stages"),
    (dict(window_size=(7, 7, 7)), "window_size=(7, 7, 7) should be a value for each"),
    (dict(window_size=(7, 7, 1, 7)), "window_size=1 in stage 3: relative positions need 2"),
    (dict(window_size=(7, 7, 7.0, 7)), "window_size has 7.0"),
]
OPTIONS = [
    (dict(num_heads=(2, 4, 3, 16)), "width 256 (dim=64 × 4), which its num_heads=3 do not divide"),
    (dict(num_heads=(2, 4, 0, 16)), "num_heads has 0"),
    (dict(depths=(2, 3, 6)), "depths=(2, 3, 6) should be a value for each of the four stages"),
    (dict(depths=(2, 3, -6, 5)), "depths has -6"),
    (dict(depths="2365"), "depths='2365' should be a value for each of the four stages"),
    (dict(dim="64"), "dim has '64': give whole numbers of 1 or more"),
    (dict(dim=64.0), "dim has 64.0"),
    (dict(dim=True), "dim has True"),
    (dict(in_dim=0), "in_dim has 0"),
    (dict(in_chans=0), "in_chans has 0"),
    (dict(ct_size=0), "ct_size has 0"),
    (dict(ct_size=8), "ct_size=8 asks for more carrier tokens than the 7×7 windows of stage 3"),
    (dict(num_classes=-1), "num_classes has -1"),
    (dict(hat=(True, False)), "hat=(True, False) should be a value for each of the four stages"),
    (dict(hat=("false", "false", "true", "false")), "hat has 'false': give True or False"),
    (dict(qkv_bias="no"), "qkv_bias has 'no': give True or False"),
    (dict(mlp_ratio=0), "mlp_ratio=0 leaves the MLPs no hidden channels"),
    (dict(mlp_ratio=None), "mlp_ratio=None should be a finite number"),
    (dict(layer_scale="1e-5"), "layer_scale='1e-5' should be a finite number"),
    (dict(layer_scale=True), "layer_scale=True should be a finite number"),
    (dict(qk_scale=float("nan")), "qk_scale=nan should be a finite number"),
    (dict(drop_path_rate=1.0), "drop_path_rate=1.0 is not a probability"),
    (dict(drop_rate=-0.1), "drop_rate=-0.1 is not a probability"),
    (dict(attn_drop_rate="0"), "attn_drop_rate='0' should be a finite number"),
]


@pytest.mark.parametrize(("name", "options", "message"), UNKNOWN)
def test_unknown_names(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create_model(name, **options)


@pytest.mark.parametrize(("options", "message"), SIZES + OPTIONS)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        create_model("faster_vit_0_224", **options)
    assert "faster_vit_0_224: " in str(error.value)


def test_too_few_carrier_tokens():
    with pytest.raises(ValueError, match="fewer than the 4 carrier tokens"):
        create_model("faster_vit_0_any_res", resolution=(112, 224), ct_size=1)


@pytest.mark.parametrize("dtype", [jnp.int32, "bf16", np.uint8, None])
def test_a_type_that_cannot_compute(dtype):
    with pytest.raises(ValueError, match="dtype"):
        create_model("faster_vit_0_224", dtype=dtype)


def test_a_config_of_its_own():
    with pytest.raises(ValueError, match="use an any_res one"):
        FasterViTConfig(
            depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], dim=8, in_dim=8, resolution=[224, 200]
        )


def apply(images, name="faster_vit_0_224", **options):
    """Applies a small abstract model to the images: refusals need no weights."""
    model = abstract_model(variant_config(name, **{**SMALL, **options}))
    model.eval()
    if isinstance(images, tuple):
        images = jax.ShapeDtypeStruct(images, jnp.float32)
        return nnx.eval_shape(lambda model, batch: model(batch), model, images)
    return model(images)


IMAGES = [
    ((2, 3, 128, 128), "They look channels-first: use images.transpose(0, 2, 3, 1)."),
    ((2, 128, 128, 4), "shape (2, 128, 128, 4); expected normalised images [N, height, width, 3]"),
    ((128, 128, 3), "For one image, use images[None]."),
    ((0, 128, 128, 3), "there are none"),
    ((2, 256, 256, 3), "4×4 windows, but its carrier tokens are planned for 2×2 windows"),
    ((2, 256, 256, 3), "images of 128×128: resize the image, or use model.at_resolution("),
    ((2, 120, 100, 3), "map of 8×7, which windows of 4×4 do not tile"),
    (np.zeros((1, 128, 128, 3), np.uint8), "The images are uint8; expected normalised images"),
    (jnp.zeros((1, 128, 128, 3), jnp.int32), "The images are int32"),
    ([[1.0]], "The images are a list; expected normalised images"),
    ("cat.jpg", "The images are a str; expected"),
]


@pytest.mark.parametrize(("images", "message"), IMAGES)
def test_wrong_images(images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        apply(images)


def test_any_res_image_of_other_windows():
    options = dict(resolution=(128, 192))
    assert apply((1, 120, 190, 3), "faster_vit_0_any_res", **options).shape == (1, 10)
    with pytest.raises(ValueError, match="2×3 windows") as error:
        apply((1, 192, 128, 3), "faster_vit_0_any_res", **options)
    assert "at_resolution" in str(error.value)


def test_training_without_randomness():
    model = abstract_model(variant_config("faster_vit_0_224", **SMALL))
    images = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    model.train()
    for rngs in (None, jax.random.key(0)):
        with pytest.raises(ValueError, match=re.escape("rngs=nnx.Rngs(dropout=seed)")):
            nnx.eval_shape(lambda m, x, rngs=rngs: m(x, rngs=rngs), model, images)


def test_batch_norm_of_a_single_value():
    options = dict(resolution=16, window_size=(4, 4, 2, 2), drop_path_rate=0.0)
    model = abstract_model(variant_config("faster_vit_0_any_res", **SMALL | options))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    model.train()
    with pytest.raises(ValueError, match="Use a larger batch or image"):
        nnx.eval_shape(lambda m, x: m(x), model, image)
