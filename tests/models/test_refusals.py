"""Wrong use gets a sentence: what was given, what is expected, how to get it."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model
from fastervit_jax.models import FasterViTConfig, abstract_model, fastervit, variant_config
from tests.small.network import SMALL

UNKNOWN = [
    ("faster_vit_0", {}, "Invalid model 'faster_vit_0'. Nearest: faster_vit_"),
    ("fastervit_3_224", {}, "Nearest: faster_vit_3_224"),
    ("resnet50", {}, "All: faster_vit_0_224"),
    (0, {}, "Invalid model 0"),
    ("faster_vit_0_224", dict(depth=3), "Invalid model option 'depth'. Nearest: depths"),
    ("faster_vit_0_224", dict(any_res=True), "any_res is part of a model's name"),
]
SIZES = [
    (dict(resolution=225), "windows of 7×7 do not tile. Use a multiple of 112 (224 or 336)"),
    (dict(resolution=225), "The any_res model of faster_vit_0_224 is faster_vit_0_any_res"),
    (dict(resolution=(224, 448)), "Invalid resolution=224×448: expected a square image"),
    (dict(resolution=(224, 448)), "model of faster_vit_0_224 is faster_vit_0_any_res"),
    (dict(resolution=32), "Use a multiple of 112 (112)"),
    (dict(resolution=0), "Invalid value 0 in resolution: expected whole numbers of 1 or more"),
    (dict(resolution=-224), "Invalid value -224 in resolution"),
    (dict(resolution=224.0), "Invalid value 224.0 in resolution: expected whole numbers"),
    (dict(resolution="224"), "Invalid value '224' in resolution"),
    (dict(resolution=(224, 224, 3)), "expected one side or (height, width), in pixels"),
    (dict(window_size=7), "Invalid window_size=7: expected a value for each of the four stages"),
    (dict(window_size=(7, 7, 7)), "window_size=(7, 7, 7): expected a value for each"),
    (dict(window_size=(7, 7, 1, 7)), "window_size=1 in stage 3: expected 2 or more"),
    (dict(window_size=(7, 7, 7.0, 7)), "Invalid value 7.0 in window_size"),
]
OPTIONS = [
    (
        dict(num_heads=(2, 4, 3, 16)),
        "Invalid num_heads=3 in stage 3: must divide its width 256",
    ),
    (dict(num_heads=(2, 4, 0, 16)), "Invalid value 0 in num_heads"),
    (dict(depths=(2, 3, 6)), "depths=(2, 3, 6): expected a value for each of the four stages"),
    (dict(depths=(2, 3, -6, 5)), "Invalid value -6 in depths"),
    (dict(depths=(2, 3, 10**9, 5)), "Invalid value 1000000000 in depths: expected at most 1,000"),
    (dict(dim=10**400), "in dim: expected at most 1,000,000"),
    (dict(mlp_ratio=10**400), "expected a finite number"),
    (dict(mlp_ratio=1e308), "expected a finite number"),
    (dict(depths="2365"), "depths='2365': expected a value for each of the four stages"),
    (dict(dim="64"), "Invalid value '64' in dim: expected whole numbers of 1 or more"),
    (dict(dim=64.0), "Invalid value 64.0 in dim"),
    (dict(dim=True), "Invalid value True in dim"),
    (dict(in_dim=0), "Invalid value 0 in in_dim"),
    (dict(in_chans=0), "Invalid value 0 in in_chans"),
    (dict(ct_size=0), "Invalid value 0 in ct_size"),
    (dict(ct_size=8), "Invalid ct_size=8: expected at most 7, the side of the windows"),
    (dict(num_classes=-1), "Invalid value -1 in num_classes"),
    (dict(hat=(True, False)), "hat=(True, False): expected a value for each of the four stages"),
    (
        dict(hat=("false", "false", "true", "false")),
        "Invalid value 'false' in hat: expected True or False",
    ),
    (dict(qkv_bias="no"), "Invalid value 'no' in qkv_bias: expected True or False"),
    (dict(mlp_ratio=0), "Invalid mlp_ratio=0: expected at least one hidden channel per MLP"),
    (dict(mlp_ratio=None), "mlp_ratio=None: expected a finite number"),
    (dict(layer_scale="1e-5"), "layer_scale='1e-5': expected a finite number"),
    (dict(layer_scale=True), "layer_scale=True: expected a finite number"),
    (dict(qk_scale=float("nan")), "qk_scale=nan: expected a finite number"),
    (dict(drop_path_rate=1.0), "drop_path_rate=1.0: expected a probability"),
    (dict(drop_rate=-0.1), "drop_rate=-0.1: expected a probability"),
    (dict(attn_drop_rate="0"), "attn_drop_rate='0': expected a finite number"),
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
    with pytest.raises(ValueError, match="fewer than 4 carrier tokens"):
        create_model("faster_vit_0_any_res", resolution=(112, 224), ct_size=1)


@pytest.mark.parametrize("dtype", [jnp.int32, "bf16", np.uint8, None])
def test_a_type_that_cannot_compute(dtype):
    with pytest.raises(ValueError, match="dtype"):
        create_model("faster_vit_0_224", dtype=dtype)


def test_a_config_of_its_own():
    with pytest.raises(ValueError, match="An any_res network takes any height and width"):
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


EXPECTED = "Invalid images: expected normalized images [N, height, width, 3], floating point, "
IMAGES = [
    ((2, 3, 128, 128), "They look channels-first: use images.transpose(0, 2, 3, 1)."),
    (
        (2, 128, 128, 4),
        EXPECTED + "got shape (2, 128, 128, 4)",
    ),
    ((128, 128, 3), "For one image, use images[None]."),
    ((0, 128, 128, 3), "expected at least one, got shape (0, 128, 128, 3)"),
    ((2, 256, 256, 3), "4×4 windows, but its carrier tokens are planned for 2×2 windows"),
    ((2, 256, 256, 3), "images of 128×128. Resize the image, or use model.at_resolution("),
    ((2, 120, 100, 3), "map of 8×7, which windows of 4×4 do not tile"),
    (
        np.zeros((1, 128, 128, 3), np.uint8),
        EXPECTED + "got uint8",
    ),
    (jnp.zeros((1, 128, 128, 3), jnp.int32), "got int32"),
    (
        [[1.0]],
        EXPECTED + "got list",
    ),
    ("cat.jpg", "got str"),
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


def test_a_large_model_outside_jit_gets_one_hint():
    fastervit._warn_once.cache_clear()
    large, images = variant_config("faster_vit_0_224"), jnp.zeros((1, 224, 224, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastervit._hint_at_jit(variant_config("faster_vit_0_224", **SMALL), images)
        jax.jit(lambda images: fastervit._hint_at_jit(large, images))(images)
    with pytest.warns(UserWarning, match=re.escape("nnx.jit(lambda model, images: model(images))")):
        fastervit._hint_at_jit(large, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastervit._hint_at_jit(large, images)
