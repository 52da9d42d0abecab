"""Our float32 network against the official one in float64: logits and the four stages' maps.

`pytest -rA` shows the largest differences, case by case.
"""

import pytest

from tests.reference.official import (
    images,
    largest_difference,
    official_model,
    official_outputs,
    our_model,
    our_outputs,
)

LIMIT = 1e-5
SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 1), num_classes=20)

# Name of the case: (model, options beyond SMALL[, image size where it is not the resolution]).
SQUARE = {
    "carrier tokens, layer scale, propagation": ("faster_vit_3_224", {}),
    "ct_size 1, no layer scale, mlp_ratio, no qkv_bias": (
        "faster_vit_0_224",
        dict(ct_size=1, mlp_ratio=2.5, qkv_bias=False),
    ),
    "ct_size 3, qk_scale, integer layer_scale, layer_scale_conv, layer_norm_last": (
        "faster_vit_3_224",
        dict(ct_size=3, qk_scale=0.3, layer_scale=1, layer_scale_conv=0.7, layer_norm_last=True),
    ),
    "448, every stage hierarchical, propagation without layer scale": (
        "faster_vit_0_224",
        dict(resolution=448, hat=None, do_propagation=True),
    ),
    "windows of 8 and 4 at 256, ct_size 4, no head, one channel": (
        "faster_vit_3_224",
        dict(resolution=256, window_size=(8, 8, 8, 4), ct_size=4, num_classes=0, in_chans=1),
    ),
    "hierarchical stage 4 alone, no stage 1 blocks": (
        "faster_vit_3_224",
        dict(resolution=448, hat=(False, False, False, True), depths=(0, 1, 1, 2)),
    ),
    "no hierarchical stage, no stage 2 and 3 blocks": (
        "faster_vit_0_224",
        dict(hat=(False,) * 4, depths=(1, 0, 0, 2)),
    ),
    "220: the official code plans one window where there are four": (
        "faster_vit_3_224",
        dict(resolution=220),
    ),
    "heads, odd widths, dropouts off in inference": (
        "faster_vit_0_224",
        dict(
            num_heads=(1, 1, 2, 4),
            dim=18,
            in_dim=5,
            drop_path_rate=0.5,
            drop_rate=0.3,
            attn_drop_rate=0.2,
        ),
    ),
}
ANY_RES = {
    "224×200, padded to a square grid": ("faster_vit_3_any_res", dict(resolution=(224, 200))),
    "192×320, wide grid": ("faster_vit_3_any_res", dict(resolution=(192, 320))),
    "320×192, high grid, ct_size 3": (
        "faster_vit_3_any_res",
        dict(resolution=(320, 192), ct_size=3),
    ),
    "224×336, ct_size 1": ("faster_vit_0_any_res", dict(resolution=(224, 336), ct_size=1)),
    "576×960, the default": ("faster_vit_3_any_res", {}),
    "541×960, the default of number 2": ("faster_vit_2_any_res", {}),
    "448×672, every stage hierarchical": (
        "faster_vit_3_any_res",
        dict(resolution=(448, 672), hat=None),
    ),
    "112×112, one window": ("faster_vit_3_any_res", dict(resolution=112)),
    "120×120: the official code plans one window where there are four": (
        "faster_vit_3_any_res",
        dict(resolution=(120, 120)),
    ),
}
WITHOUT_CARRIERS = {
    "21k at 224": ("faster_vit_4_21k_224", {}, (224, 224)),
    "21k at 384": ("faster_vit_4_21k_384", {}, (384, 384)),
    "21k at 224, given 448×224": ("faster_vit_4_21k_224", {}, (448, 224)),
    "21k any_res, given 250×313": ("faster_vit_4_21k_224_any_res", {}, (250, 313)),
}


def compare(record_property, name: str, options: dict, size=None, batch: int = 2) -> None:
    """Asserts that logits and maps agree to LIMIT of the largest."""
    theirs = official_model(name, **options)
    ours = our_model(name, theirs, **options)
    height, width = size or ours.config.resolution
    batch_of_images = images(batch, height, width, ours.config.in_chans)
    their_logits, their_maps = official_outputs(theirs, batch_of_images)
    del theirs
    logits, maps = our_outputs(ours, batch_of_images)
    differences = [largest_difference(logits, their_logits)]
    differences += [largest_difference(a, b) for a, b in zip(maps, their_maps, strict=True)]

    text = " ".join(f"{difference:.1e}" for difference in differences)
    record_property("largest differences", text)
    print(f"logits and stages 1 to 4 differ by: {text}")
    assert max(differences) < LIMIT


@pytest.mark.parametrize("case", SQUARE)
def test_square(case, record_property):
    name, options = SQUARE[case]
    compare(record_property, name, SMALL | options)


@pytest.mark.parametrize("case", ANY_RES)
def test_any_resolution(case, record_property):
    name, options = ANY_RES[case]
    compare(record_property, name, SMALL | options, batch=1 if "default" in case else 2)


@pytest.mark.parametrize("case", WITHOUT_CARRIERS)
def test_without_carrier_tokens(case, record_property):
    name, options, size = WITHOUT_CARRIERS[case]
    compare(record_property, name, SMALL | dict(num_heads=(2, 4, 8, 16)) | options, size, batch=1)


def test_the_real_number_0(record_property):
    compare(record_property, "faster_vit_0_224", {}, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "faster_vit_1_224",
        "faster_vit_2_224",
        "faster_vit_3_224",
        "faster_vit_4_224",
        "faster_vit_4_21k_224",
        "faster_vit_4_21k_384",
        "faster_vit_0_any_res",
        "faster_vit_2_any_res",
        "faster_vit_4_21k_224_any_res",
    ],
)
def test_real_networks(name, record_property):
    compare(record_property, name, {}, batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_vit_5_224", "faster_vit_6_224"])
def test_the_two_largest_at_their_depth(name, record_property):
    compare(record_property, name, dict(dim=32, in_dim=16))


def test_other_image_sizes_on_the_same_windows(record_property):
    """A hierarchical any_res model takes every size whose windows are those it was built for."""
    options = SMALL | dict(resolution=(224, 200))
    compare(record_property, "faster_vit_3_any_res", options, (210, 224))
