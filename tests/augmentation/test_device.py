"""Device augmentation by itself; tests/reference compares it with timm, draw by draw.

Every statistical test here and there is held at the 0.1 % level, and shown to fail on a planted
wrong distribution.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from scipy import stats

from fastervit_jax.augmentation.device import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentationSettings,
    augment,
    normalize,
)
from fastervit_jax.augmentation.erasing import apply_erasing, draw_erasing, random_erasing
from fastervit_jax.augmentation.mixing import MixingDraw, apply_mixing, draw_mixing, mix
from tests.parallel.eight_devices import run_on_mesh
from tests.quick_compilation import quick_jit

LEVEL = 1e-3
KEY = jax.random.key(0)
DRAWS = 20_000

# Compiled once for each shape and setting.
compiled_augment = quick_jit(augment, static_argnames="settings")
compiled_mix = quick_jit(mix, static_argnames=("num_classes", "group_size"))
compiled_erasing = quick_jit(random_erasing, static_argnames="probability")


@pytest.fixture
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 24, 16, 3), np.uint8))


@pytest.fixture
def labels():
    return jnp.arange(8)


# --- normalization --------------------------------------------------------------------------------


def test_normalize(images):
    expected = (np.asarray(images, np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    got = normalize(images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    half = normalize(images, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(half, got.astype(jnp.bfloat16))


# --- mixing ---------------------------------------------------------------------------------------


def draw_many_mixings(**settings):
    return jax.tree.map(np.asarray, draw_mixing(KEY, jnp.arange(DRAWS), **settings))


def test_lambda_is_beta_distributed():
    lam = draw_many_mixings(image_size=(8, 8), mixup_alpha=0.8, cutmix_alpha=0).lam
    assert stats.kstest(lam, stats.beta(0.8, 0.8).cdf).pvalue > LEVEL
    wrong = draw_many_mixings(image_size=(8, 8), mixup_alpha=0.9, cutmix_alpha=0).lam
    assert stats.kstest(wrong, stats.beta(0.8, 0.8).cdf).pvalue < LEVEL


def test_switch_and_mixing_probability():
    def pvalue(count, probability):
        return stats.binomtest(int(count), DRAWS, probability).pvalue

    draw = draw_many_mixings(image_size=(224, 224), switch_probability=0.5, probability=0.8)
    assert pvalue((draw.lam < 1).sum(), 0.8) > LEVEL
    assert pvalue(draw.use_cutmix.sum(), 0.4) > LEVEL
    draw = draw_many_mixings(image_size=(224, 224), switch_probability=0.52, probability=0.82)
    assert pvalue((draw.lam < 1).sum(), 0.8) < LEVEL
    assert pvalue(draw.use_cutmix.sum(), 0.4) < LEVEL


def test_cutmix_lambda_is_the_share_outside_the_box():
    height, width = 224, 160
    lam, use_cutmix, boxes = draw_many_mixings(image_size=(height, width), mixup_alpha=0)
    assert use_cutmix.all()
    top, bottom, left, right = boxes.T
    assert (boxes >= 0).all()
    assert (bottom <= height).all() and (right <= width).all()
    area = (bottom - top) * (right - left)
    np.testing.assert_allclose(lam, 1 - area / (height * width), atol=1e-6)


def test_no_alpha_or_no_probability_leaves_the_images(images, labels):
    for settings in (dict(mixup_alpha=0, cutmix_alpha=0), dict(probability=0.0)):
        mixed, soft = mix(KEY, images, labels, num_classes=8, group_size=4, **settings)
        np.testing.assert_array_equal(mixed, images)
        np.testing.assert_allclose(soft, np.full((8, 8), 0.0125) + 0.9 * np.eye(8), atol=1e-7)


def test_one_alpha_alone_decides_between_mixup_and_cutmix():
    size = dict(image_size=(8, 8))
    assert not draw_many_mixings(**size, cutmix_alpha=0, switch_probability=1.0).use_cutmix.any()
    assert draw_many_mixings(**size, mixup_alpha=0, switch_probability=0.0).use_cutmix.all()


def test_groups_mix_within_themselves(images, labels):
    """Each group is mixed as it would be alone, given its place in the global batch."""
    together = compiled_mix(KEY, images, labels, num_classes=8, group_size=4)
    for first in (0, 4):
        part = slice(first, first + 4)
        alone = compiled_mix(
            KEY, images[part], labels[part], num_classes=8, group_size=4, first_image=first
        )
        np.testing.assert_array_equal(alone[0], together[0][part])
        np.testing.assert_allclose(alone[1], together[1][part], atol=1e-6)
    # Labels of the other group get the smoothing alone.
    np.testing.assert_allclose(together[1][:4, 4:], 0.1 / 8, rtol=1e-6)
    np.testing.assert_allclose(together[1].sum(1), 1, rtol=1e-6)


def test_cutmix_pastes_the_mirrored_partner(images, labels):
    draw = MixingDraw(
        lam=jnp.array([0.25, 0.75]),
        use_cutmix=jnp.array([True, True]),
        boxes=jnp.array([[0, 24, 0, 12], [3, 15, 8, 16]]),
    )
    mixed, soft = apply_mixing(images, labels, draw, num_classes=8)
    for group in range(2):
        top, bottom, left, right = np.asarray(draw.boxes[group])
        for i in range(4):
            own, partner = 4 * group + i, 4 * group + 3 - i
            expected = np.array(images[own])
            expected[top:bottom, left:right] = images[partner, top:bottom, left:right]
            np.testing.assert_array_equal(mixed[own], expected)
            assert soft[own, own] == draw.lam[group]


def test_mixing_rounds_half_to_even():
    """With lambda 1/2 half of all sums of two levels end in .5."""
    images = jnp.stack([jnp.full((1, 2, 3), 7, jnp.uint8), jnp.full((1, 2, 3), 8, jnp.uint8)])
    draw = MixingDraw(jnp.array([0.5]), jnp.array([False]), jnp.zeros((1, 4), int))
    mixed, _ = apply_mixing(images, jnp.array([0, 1]), draw, num_classes=2)
    assert (np.asarray(mixed) == 8).all()


def test_tiny_alphas_stay_finite():
    lam = draw_many_mixings(image_size=(8, 8), mixup_alpha=0.01, cutmix_alpha=0.01).lam
    assert np.isfinite(lam).all()
    assert ((lam >= 0) & (lam <= 1)).all()


# --- erasing --------------------------------------------------------------------------------------


def draw_many_rectangles(**settings):
    return np.asarray(draw_erasing(KEY, jnp.arange(DRAWS), **settings))


def test_erasing_probability():
    def pvalue(boxes):
        erased = int((boxes[:, 1] > boxes[:, 0]).sum())
        return stats.binomtest(erased, DRAWS, 0.25).pvalue

    assert pvalue(draw_many_rectangles(image_size=(224, 224))) > LEVEL
    assert pvalue(draw_many_rectangles(image_size=(224, 224), probability=0.27)) < LEVEL


def test_erased_rectangles_are_strictly_smaller_than_the_image():
    """On an image this narrow most attempts fail, and some images are left whole."""
    boxes = draw_many_rectangles(
        image_size=(64, 5), probability=1.0, area=(0.3, 1.0), aspect=(0.3, 20.0)
    )
    top, bottom, left, right = boxes.T
    assert (boxes >= 0).all()
    assert (bottom <= 64).all() and (right <= 5).all()
    assert (bottom - top < 64).all() and (right - left < 5).all()
    erased = bottom > top
    assert 0.5 < erased.mean() < 1
    assert (boxes[~erased] == 0).all()
    # Every position occurs, the last one too.
    assert left[erased].min() == 0 and right.max() == 5
    assert top[erased].min() == 0 and bottom.max() == 64


def test_rectangle_that_never_fits_leaves_the_image():
    boxes = draw_many_rectangles(
        image_size=(24, 16), probability=1.0, area=(1.0, 1.0), aspect=(1.5, 1.5)
    )
    assert (boxes == 0).all()


def test_noise_is_standard_normal_and_its_own_for_every_pixel():
    images = jnp.full((128, 24, 16, 3), 100.0)
    erased = np.asarray(compiled_erasing(KEY, images, probability=1.0))
    noise = erased[erased != 100]
    assert noise.size > 10_000
    assert stats.kstest(noise, stats.norm.cdf).pvalue > LEVEL
    assert stats.kstest(noise * 1.05, stats.norm.cdf).pvalue < LEVEL
    assert np.unique(noise).size > 0.99 * noise.size
    # A pixel is erased in all channels or in none.
    assert np.isin((erased != 100).sum(-1), (0, 3)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_erasing_keeps_the_dtype(images, dtype):
    erased = compiled_erasing(KEY, normalize(images, dtype=dtype), probability=1.0)
    assert erased.dtype == dtype
    # Drawn in float32 and then rounded, whatever the dtype.
    full = compiled_erasing(KEY, normalize(images), probability=1.0)
    np.testing.assert_array_equal(erased, full.astype(dtype))


# --- the whole ------------------------------------------------------------------------------------

SETTINGS = AugmentationSettings(num_classes=8, group_size=4, erasing_probability=0.5)


def test_augment_mixes_then_normalizes_then_erases(images, labels):
    augmented, soft = compiled_augment(KEY, images, labels, SETTINGS)
    unerased = dataclasses.replace(SETTINGS, erasing_probability=0.0)
    mixed, mixed_labels = compiled_augment(KEY, images, labels, unerased)
    np.testing.assert_allclose(soft, mixed_labels, atol=1e-6)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    # Before erasing, the pixels are whole levels, normalized.
    levels = (np.asarray(mixed) * IMAGENET_STD + IMAGENET_MEAN) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    difference = np.abs(np.asarray(augmented) - np.asarray(mixed)).max(axis=-1)
    changed = (difference > 1e-5).any(axis=(1, 2))
    assert 0 < changed.sum() < 8


def test_augment_depends_on_the_key_alone(images, labels):
    first, again, other = (
        compiled_augment(jax.random.key(seed), images, labels, SETTINGS)[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).mean() > 0.5


def test_double_precision_changes_no_draw(images, labels):
    expected = compiled_augment(KEY, images, labels, SETTINGS)
    with jax.enable_x64(True):
        got = compiled_augment(KEY, images, labels, SETTINGS)
    for array, other in zip(expected, got, strict=True):
        assert other.dtype == array.dtype == jnp.float32
        np.testing.assert_allclose(array, other, atol=1e-5)


def augment_on_mesh(key, images, labels, mesh):
    return augment(key, images, labels, SETTINGS, mesh=mesh)


def augment_without_mesh(key, images, labels, mesh):
    return augment(key, images, labels, SETTINGS)


def mix_across_devices(key, images, labels, mesh):
    return images // 2 + images[::-1] // 2


@pytest.mark.parametrize(
    ("shape", "axis_type"),
    [
        ((8, 1, 1), AxisType.Auto),
        ((4, 2, 1), AxisType.Explicit),
        ((2, 2, 2), AxisType.Auto),
    ],
)
def test_no_collective_on_eight_devices_and_the_same_result(shape, axis_type, on_one_device):
    assert jax.device_count() == 8
    collectives, results = run_on_mesh(augment_on_mesh, shape, axis_type)
    assert not collectives
    # Lambda may differ by a rounding, as compilers vectorise its logarithms differently.
    for array, expected in zip(results, on_one_device, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


@pytest.fixture(scope="module")
def on_one_device():
    _, results = run_on_mesh(augment_without_mesh, (1, 1, 1))
    return results


@pytest.mark.parametrize("planted", [augment_without_mesh, mix_across_devices])
def test_a_collective_would_be_noticed(planted):
    collectives, _ = run_on_mesh(planted, (8, 1, 1))
    assert collectives


# --- refusals -------------------------------------------------------------------------------------


def refuse(change):
    images, labels = jnp.zeros((8, 4, 4, 3), jnp.uint8), jnp.zeros(8, int)
    change = dict(change)
    images, labels = change.pop("images", images), change.pop("labels", labels)
    settings = dataclasses.replace(SETTINGS, **{"group_size": 4, **change})
    jax.eval_shape(lambda: augment(KEY, images, labels, settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mixup_alpha=-0.1), "Invalid mixup_alpha: .* at least 0"),
        (dict(cutmix_alpha=float("nan")), "cutmix_alpha"),
        (dict(switch_probability=1.1), "Invalid switch_probability: expected 0 to 1, got 1.1"),
        (dict(mixing_probability=-0.1), "Invalid probability: expected 0 to 1, got -0.1"),
        (dict(erasing_probability=2), "Invalid erasing probability: expected 0 to 1, got 2"),
        (dict(smoothing=1.0), "Invalid smoothing: expected a number in"),
        (dict(group_size=3), "Invalid batch size 8: must be a multiple of group_size=3"),
        (dict(group_size=0), "Invalid group_size: expected at least 1, got 0"),
        (dict(erasing_area=(0.3, 0.2)), "erasing area"),
        (dict(erasing_area=(0.3, 1.2)), "smallest <= largest <= 1, got"),
        (dict(erasing_aspect=(0.0, 1.0)), "erasing aspect"),
        (dict(std=(1.0, 1.0, 0.0)), "Invalid std: expected positive"),
        (dict(mean=(0.5,)), "expected 3 values, one per channel .* got 1 and 3"),
        (dict(images=jnp.zeros((8, 4, 4, 3))), "expected uint8 of shape .*, got float32"),
        (dict(images=jnp.zeros((8, 4, 4), jnp.uint8)), r"got uint8 of shape \(8, 4, 4\)"),
        (dict(labels=jnp.zeros(7, int)), "Invalid labels: .* one label per image"),
        (dict(labels=jnp.zeros(8)), "Invalid labels: expected integers"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        refuse(change)


def test_more_refusals(images, labels):
    with pytest.raises(
        ValueError, match="Invalid first_image: expected a multiple of group_size=4, got 6"
    ):
        mix(KEY, images, labels, num_classes=8, group_size=4, first_image=6)
    with pytest.raises(ValueError, match="Invalid images for random erasing: expected normalized"):
        random_erasing(KEY, images)
    with pytest.raises(ValueError, match="Invalid images: expected dtype uint8"):
        normalize(images.astype(jnp.float32))
    with pytest.raises(ValueError, match="must be a multiple of the 3 groups"):
        draw = draw_mixing(KEY, jnp.arange(3), image_size=(24, 16), probability=0)
        apply_mixing(images, labels, draw, num_classes=8)
    mesh = jax.make_mesh((1,), ("batch",))
    with pytest.raises(ValueError, match="'data', 'fsdp'"):
        augment(KEY, images, labels, SETTINGS, mesh=mesh)
    mesh = jax.make_mesh((4, 1), ("data", "fsdp"))
    with pytest.raises(ValueError, match="must divide the 2 images of each device"):
        augment(KEY, images, labels, SETTINGS, mesh=mesh)
    with pytest.raises(
        ValueError, match="Invalid batch size 6: must be a multiple of the 4 devices"
    ):
        augment(KEY, images[:6], labels[:6], SETTINGS, mesh=mesh)


def test_empty_box_erases_nothing(images):
    floats = normalize(images)
    np.testing.assert_array_equal(
        apply_erasing(floats, jnp.zeros((8, 4), int), jnp.ones_like(floats)), floats
    )
