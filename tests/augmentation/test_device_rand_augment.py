"""RandAugment on the device against the host's, which is timm's pixel by pixel.

Statistical tests are held at the 0.1 % level and shown to fail on a planted wrong distribution.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage import data as photographs

from fastervit_jax.augmentation.device import AugmentationSettings, augment
from fastervit_jax.augmentation.device_operations import COLOR, GEOMETRIC, affine
from fastervit_jax.augmentation.device_rand_augment import (
    CHUNK,
    NO_OPERATION,
    RandAugmentDraw,
    apply_rand_augment,
    draw_rand_augment,
    operation_arguments,
    random_augment,
    random_flip,
)
from fastervit_jax.augmentation.operations import Operation, apply_operation
from fastervit_jax.augmentation.rand_augment import (
    FIFTEEN,
    RandAugment,
    operation_argument,
    parse_rand_augment,
)
from tests.parallel.eight_devices import run_on_mesh
from tests.quick_compilation import quick_jit

LEVEL = 1e-3
DRAWS = 20_000
KEY = jax.random.key(0)
RECIPE = parse_rand_augment("rand-m9-mstd0.5-inc1")
# Neither square nor a multiple of the tiles that geometric operations work in.
HEIGHT, WIDTH = 180, 150
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def images():
    """Photographs, noise and a single color, which operations treat as exceptions."""
    arrays = [
        np.asarray(Image.fromarray(photograph).convert("RGB").resize((WIDTH, HEIGHT), BICUBIC))
        for photograph in (photographs.astronaut(), photographs.chelsea(), photographs.coffee())
    ]
    arrays.append(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    arrays.append(np.full((HEIGHT, WIDTH, 3), 77, np.uint8))
    return np.stack(arrays)


def on_host(images, name, argument, resampling=None):
    operation = Operation(name, argument, resampling)
    return np.stack([apply_operation(Image.fromarray(image), operation) for image in images])


def shares(device, host):
    """Shares of the levels that are equal, and within 1, in the worst of the images."""
    difference = np.abs(np.asarray(device).astype(int) - host)
    axes = tuple(range(1, difference.ndim))
    return (difference == 0).mean(axes).min(), (difference <= 1).mean(axes).min()


# --- the operations -------------------------------------------------------------------------------

# The strongest and a middling magnitude in both directions, by the recipe's way of counting.
ARGUMENTS = {
    name: sorted(
        {
            operation_argument(name, magnitude, increasing=True, negative=negative) or 0.0
            for magnitude in (0.0, 4.4, 9.3, 10.0)
            for negative in (False, True)
        }
    )
    for name in FIFTEEN
}


@pytest.mark.parametrize("name", COLOR)
def test_color_operations_give_the_hosts_levels(images, name):
    operation = quick_jit(COLOR[name])
    takes_argument = operation_argument(name, 5.0, increasing=True, negative=False) is not None
    for argument in ARGUMENTS[name]:
        device = operation(images, jnp.full(len(images), argument, jnp.float32))
        equal, within_one = shares(
            device, on_host(images, name, argument if takes_argument else None)
        )
        assert within_one == 1
        # Pillow's stretching rounds whole quotients down now and then.
        assert equal == 1 or (name == "AutoContrast" and equal > 0.9)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_give_the_hosts_levels(images, name):
    transform = quick_jit(
        lambda images, matrices, bicubic: affine(images, matrices, bicubic, 2**0.5)
    )
    for argument in ARGUMENTS[name]:
        for resampling in (BILINEAR, BICUBIC):
            matrices = GEOMETRIC[name](jnp.full(len(images), argument), HEIGHT, WIDTH)
            is_bicubic = jnp.full(len(images), resampling == BICUBIC)
            device = transform(images, matrices, is_bicubic)
            equal, within_one = shares(device, on_host(images, name, argument, resampling))
            assert within_one > 0.9999
            assert equal > 0.9


def test_the_comparison_notices_the_wrong_filter_and_a_small_turn(images):
    transform = jax.jit(lambda *arguments: affine(*arguments, 2**0.5))
    host = on_host(images[:3], "Rotate", 20.0, BICUBIC)
    for degrees, is_bicubic in ((20.0, False), (20.2, True), (-20.0, True)):
        matrices = GEOMETRIC["Rotate"](jnp.full(3, degrees), HEIGHT, WIDTH)
        device = transform(images[:3], matrices, jnp.full(3, is_bicubic))
        assert shares(device, host)[1] < 0.99


@pytest.mark.parametrize("increasing", [True, False])
def test_arguments_are_the_hosts(increasing):
    magnitudes = [*range(31), *np.random.default_rng(0).uniform(0, 10, 100)]
    for name in FIFTEEN:
        for negative in (True, False):
            host = [
                operation_argument(name, float(m), increasing=increasing, negative=negative) or 0
                for m in magnitudes
            ]
            device = operation_arguments(
                name,
                jnp.array(magnitudes, jnp.float32),
                increasing=increasing,
                negative=jnp.full(len(magnitudes), negative),
            )
            np.testing.assert_allclose(device, host, rtol=1e-6, atol=1e-6, err_msg=name)


# --- putting them together ------------------------------------------------------------------------


def host_result(image, draw, i, rand_augment):
    image = Image.fromarray(image)
    for layer in range(draw.operation.shape[1]):
        if draw.operation[i, layer] == NO_OPERATION:
            continue
        name = FIFTEEN[draw.operation[i, layer]]
        argument = operation_argument(
            name,
            float(draw.magnitude[i, layer]),
            increasing=rand_augment.increasing,
            negative=bool(draw.negative[i, layer]),
        )
        resampling = (
            (BICUBIC if draw.bicubic[i, layer] else BILINEAR) if name in GEOMETRIC else None
        )
        image = apply_operation(image, Operation(name, argument, resampling))
    return np.asarray(image)


compiled_apply = quick_jit(apply_rand_augment, static_argnums=2)


def test_every_image_gets_its_own_operations_in_order(images):
    """All fifteen operations occur, and one of them on more images than a chunk holds."""
    always = dataclasses.replace(RECIPE, probability=1.0)
    count = 15 + CHUNK + 3
    batch = np.stack([images[i % 3] for i in range(count)])
    draw = draw_rand_augment(KEY, jnp.arange(count), always)
    rotate = FIFTEEN.index("Rotate")
    first_layer = jnp.array([*range(15), *[rotate] * (CHUNK + 3)])
    draw = jax.tree.map(
        np.asarray, draw._replace(operation=draw.operation.at[:, 0].set(first_layer))
    )
    device = np.asarray(compiled_apply(batch, draw, always))
    host = np.stack([host_result(batch[i], draw, i, always) for i in range(count)])
    within_one = (np.abs(device.astype(int) - host) <= 1).mean((1, 2, 3))
    # One level's difference after the first operation may be more after the second.
    assert within_one.mean() > 0.995
    assert np.median(within_one) == 1


def test_nothing_drawn_changes_nothing(images):
    nothing = jnp.full((5, 2), NO_OPERATION)
    draw = RandAugmentDraw(nothing, 0.0 * nothing, nothing > 0, nothing > 0)
    np.testing.assert_array_equal(compiled_apply(images, draw, RECIPE), images)


def test_floats_are_taken_as_levels(images):
    part = images[:2]
    draw = RandAugmentDraw(
        operation=jnp.array([[FIFTEEN.index("Invert")], [FIFTEEN.index("ShearX")]]),
        magnitude=jnp.full((2, 1), 9.0),
        negative=jnp.zeros((2, 1), bool),
        bicubic=jnp.zeros((2, 1), bool),
    )
    whole = compiled_apply(part, draw, RECIPE)
    floats = compiled_apply(jnp.asarray(part, jnp.float32) + 0.25, draw, RECIPE)
    assert floats.dtype == jnp.float32
    np.testing.assert_array_equal(floats, whole.astype(jnp.float32))


def test_flip(images):
    batch = jnp.asarray(np.stack([images[0]] * 64))
    flipped = np.asarray(random_flip(KEY, batch, 0.5))
    is_mirrored = (flipped == images[0][:, ::-1]).all((1, 2, 3))
    is_same = (flipped == images[0]).all((1, 2, 3))
    assert (is_mirrored ^ is_same).all()
    assert 15 < is_mirrored.sum() < 49
    # The draw belongs to the image's place in the global batch.
    np.testing.assert_array_equal(random_flip(KEY, batch[40:], 0.5, first_image=40), flipped[40:])
    np.testing.assert_array_equal(random_flip(KEY, batch, 0.0), batch)


def test_draws_belong_to_the_place_in_the_global_batch():
    together = draw_rand_augment(KEY, jnp.arange(64), RECIPE)
    part = draw_rand_augment(KEY, jnp.arange(24, 40), RECIPE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[24:40], b), together, part)


def augment_on_mesh(key, images, labels, mesh):
    return augment(key, images, labels, WITH_EVERYTHING, mesh=mesh)


WITH_EVERYTHING = AugmentationSettings(
    num_classes=8, group_size=4, flip_probability=0.5, rand_augment=RECIPE
)


def test_no_collective_on_eight_devices_and_the_same_result():
    collectives, (images, labels) = run_on_mesh(augment_on_mesh, (4, 2, 1))
    assert not collectives
    _, (expected_images, expected_labels) = run_on_mesh(augment_on_mesh, (1, 1, 1))
    np.testing.assert_allclose(labels, expected_labels, atol=1e-6)
    # A rounding of the arguments may move a level by one.
    assert np.mean(np.abs(np.asarray(images) - expected_images) > 1e-4) < 1e-3


# --- the distributions ----------------------------------------------------------------------------


def device_draws(rand_augment):
    draw = jax.tree.map(np.asarray, draw_rand_augment(KEY, jnp.arange(DRAWS), rand_augment))
    return {field: array.ravel() for field, array in draw._asdict().items()}


@pytest.fixture(scope="module")
def host_draws():
    """Operation, argument and filter of what the host draws and applies."""
    rng = np.random.default_rng(0)
    return [RECIPE.draw(rng) for _ in range(DRAWS)]


def same_counts(ours, theirs):
    return stats.chi2_contingency([ours, theirs]).pvalue > LEVEL


def operation_counts(draws):
    return np.bincount(draws["operation"] - NO_OPERATION, minlength=16)


def test_operations_are_drawn_and_applied_as_on_the_host(host_draws):
    names = [operation.name for drawn in host_draws for operation in drawn]
    host = np.array([2 * DRAWS - len(names), *(names.count(name) for name in FIFTEEN)])
    assert same_counts(operation_counts(device_draws(RECIPE)), host)
    seldom = dataclasses.replace(RECIPE, probability=0.48)
    assert not same_counts(operation_counts(device_draws(seldom)), host)


def test_the_layers_are_drawn_independently_of_each_other():
    draw = np.asarray(draw_rand_augment(KEY, jnp.arange(DRAWS), RECIPE).operation)
    table = np.zeros((16, 16))
    np.add.at(table, (draw[:, 0] + 1, draw[:, 1] + 1), 1)
    assert stats.chi2_contingency(table).pvalue > LEVEL


PER_MAGNITUDE = {
    "Rotate": 3,
    "ShearX": 0.03,
    "ShearY": 0.03,
    "TranslateX": 0.045,
    "TranslateY": 0.045,
}


def test_magnitude_is_drawn_as_on_the_host(host_draws):
    host = [
        abs(operation.argument) / PER_MAGNITUDE[operation.name]
        for drawn in host_draws
        for operation in drawn
        if operation.name in PER_MAGNITUDE
    ]

    def same(draws):
        chosen = np.isin(draws["operation"], [FIFTEEN.index(name) for name in PER_MAGNITUDE])
        # Rounded, so that those clipped to 10 are equal on both sides.
        samples = np.round(draws["magnitude"][chosen], 4), np.round(host, 4)
        return stats.ks_2samp(*samples, method="asymp").pvalue > LEVEL

    assert same(device_draws(RECIPE))
    assert not same(device_draws(dataclasses.replace(RECIPE, magnitude_std=0.6)))
    assert not same(device_draws(dataclasses.replace(RECIPE, magnitude_max=9.5)))
    assert not same(device_draws(dataclasses.replace(RECIPE, magnitude=8)))


def test_signs_and_filters_are_even():
    def even(count):
        return stats.binomtest(int(count), 2 * DRAWS, 0.5).pvalue > LEVEL

    draws = device_draws(RECIPE)
    assert even(draws["negative"].sum())
    assert even(draws["bicubic"].sum())
    assert not even(0.51 * 2 * DRAWS)


def test_other_strings():
    fixed = device_draws(parse_rand_augment("rand-m7-n1-p1"))
    assert (fixed["magnitude"] == 7).all()
    assert (fixed["operation"] != NO_OPERATION).all()
    assert fixed["operation"].size == DRAWS
    uniform = device_draws(parse_rand_augment("rand-m8-mstd101"))
    assert stats.kstest(uniform["magnitude"], stats.uniform(0, 8).cdf).pvalue > LEVEL
    only_bicubic = parse_rand_augment("rand-m9", resamplings=(BICUBIC,))
    assert device_draws(only_bicubic)["bicubic"].all()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "rand_augment", "message"),
    [
        (jnp.zeros((2, 8, 8, 3), jnp.uint8), parse_rand_augment("rand-m9-t3a"), "on the host"),
        (jnp.zeros((2, 8, 8, 3), jnp.uint8), parse_rand_augment("rand-m9-tweights"), "on the host"),
        (
            jnp.zeros((2, 8, 8, 3), jnp.uint8),
            RandAugment(resamplings=(Image.Resampling.NEAREST,)),
            "expected bilinear or bicubic",
        ),
        (jnp.zeros((2, 8, 8, 3), jnp.int32), RECIPE, "expected dtype uint8 or float, got int32"),
        (jnp.zeros((2, 8, 8, 1), jnp.uint8), RECIPE, r"expected shape .*\(2, 8, 8, 1\)"),
    ],
)
def test_bad_arguments_are_refused(images, rand_augment, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: random_augment(KEY, images, rand_augment))


def test_bad_flip_probability_is_refused():
    with pytest.raises(ValueError, match="Invalid flip probability: expected 0 to 1"):
        random_flip(KEY, jnp.zeros((2, 8, 8, 3)), 1.5)
