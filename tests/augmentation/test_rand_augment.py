"""RandAugment strings and the training transform, without the reference at hand."""

import math
import pickle

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.host import TrainTransform, draw_crop_box
from fastervit_jax.augmentation.operations import COLOR, GEOMETRIC, Operation, apply_operation
from fastervit_jax.augmentation.rand_augment import FIFTEEN, operation_argument, parse_rand_augment
from tests.data.photographs import encode, photographs

RECIPE = "rand-m9-mstd0.5-inc1"


def test_the_recipes_string():
    augment = parse_rand_augment(RECIPE)
    assert augment.operations == FIFTEEN and augment.weights is None
    assert (augment.magnitude, augment.magnitude_std, augment.magnitude_max) == (9, 0.5, 10)
    assert (augment.num_layers, augment.probability, augment.increasing) == (2, 0.5, True)
    assert parse_rand_augment("m9-mstd0.5-inc1") == augment


def test_other_strings():
    augment = parse_rand_augment("rand-m12-n4-p0.3-mmax20-mstd200-t3a")
    assert (augment.magnitude, augment.num_layers, augment.probability) == (12, 4, 0.3)
    assert augment.magnitude_max == 20 and math.isinf(augment.magnitude_std)
    assert augment.operations == ("Solarize", "Desaturate", "GaussianBlur")
    assert augment.increasing and not parse_rand_augment("rand-m9").increasing
    assert sum(parse_rand_augment("rand-tweights").weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rand", "sections .* got 'rand'"),
        ("rand-", "sections .* got ''"),
        ("rand-x3", "got 'x3'.* An example is"),
        ("rand-m", "sections .* got 'm'"),
        ("rand-m9-inc", "sections .* got 'inc'"),
        ("rand-m-3", "sections .* got 'm'"),
        ("rand-tall", "sections .* got 'tall'"),
        ("rand-inc0", "write inc1, or omit inc"),
        ("rand-m9.5", "m must be an integer, got 9.5"),
        ("rand-p1.5", "p must be a probability, got 1.5"),
        ("rand-mmax0", "mmax must be positive"),
        ("rand-n15-t3aw", "n must be at most 14"),
        ("augmix-m5", "sections .* got 'augmix'"),
    ],
)
def test_a_wrong_string_is_explained(text, says):
    with pytest.raises(ValueError, match=says):
        parse_rand_augment(text)
    with pytest.raises(ValueError, match=says):
        TrainTransform(224, rand_augment=text)


def test_the_recipes_arguments():
    """docs/reference/numbers.md, section 4, written out at magnitude 9."""
    at_nine = {
        name: operation_argument(name, 9.0, increasing=True, negative=True) for name in FIFTEEN
    }
    assert at_nine == {
        "AutoContrast": None,
        "Equalize": None,
        "Invert": None,
        "Rotate": -27.0,
        "Posterize": 1,
        "Solarize": 26,
        "SolarizeAdd": 99,
        "Color": pytest.approx(0.19),
        "Contrast": pytest.approx(0.19),
        "Brightness": pytest.approx(0.19),
        "Sharpness": pytest.approx(0.19),
        "ShearX": pytest.approx(-0.27),
        "ShearY": pytest.approx(-0.27),
        "TranslateX": pytest.approx(-0.405),
        "TranslateY": pytest.approx(-0.405),
    }


def test_posterize_to_no_bits_is_black():
    """Drawn by the recipe at its highest magnitude, and refused by today's Pillow."""
    argument = operation_argument("Posterize", 10.0, increasing=True, negative=False)
    image = apply_operation(photographs()["chelsea"], Operation("Posterize", argument))
    assert argument == 0 and not np.asarray(image).any()


def test_every_operation_works_at_every_magnitude():
    image = photographs()["coffee"].resize((31, 17))
    for name in [*GEOMETRIC, *COLOR]:
        for magnitude in np.linspace(0, 20, 41).tolist():
            for increasing in (False, True):
                argument = operation_argument(name, magnitude, increasing=increasing, negative=True)
                filter_ = Image.Resampling.BICUBIC if name in GEOMETRIC else None
                result = apply_operation(image, Operation(name, argument, filter_))
                assert result.size == image.size and result.mode == "RGB"


def test_a_transform_is_its_generator_alone():
    encoded = encode(photographs()["rocket"], "JPEG")
    transform = TrainTransform((48, 64), rand_augment=RECIPE)
    images = [transform(encoded, np.random.default_rng(seed)) for seed in range(8)]
    copy = pickle.loads(pickle.dumps(transform))
    for seed, image in enumerate(images):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        np.testing.assert_array_equal(copy(encoded, np.random.default_rng(seed)), image)
    assert len({image.tobytes() for image in images}) == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images_train(size):
    encoded = encode(photographs()["rocket"].resize(size), "PNG")
    transform = TrainTransform(16, rand_augment=RECIPE)
    for seed in range(50):
        assert transform(encoded, np.random.default_rng(seed)).shape == (16, 16, 3)


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), 13), ((1000, 10), 13), ((9, 10), 10)])
def test_a_crop_that_never_fits_falls_back_to_the_centre(size, expected):
    """The whole short side, the aspect clipped to 3/4 … 4/3; timm's fallback."""
    box = draw_crop_box(*size, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3), rng=np.random.default_rng(0))
    height, width = size
    assert max(box.height, box.width) == expected and min(box.height, box.width) == min(size)
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


def test_none_of_it():
    """The whole image, no flip, no operations: only scaled."""
    photo = photographs()["astronaut"]
    transform = TrainTransform(512, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    image = transform(encode(photo, "PNG"), np.random.default_rng(0))
    np.testing.assert_array_equal(image, np.asarray(photo))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"resolution": 0}, "Invalid resolution"),
        ({"scale": (0.0, 1.0)}, "Invalid scale"),
        ({"scale": (0.5, 0.1)}, "Invalid scale"),
        ({"ratio": (0, 1)}, "Invalid ratio"),
        (
            {"interpolation": "lanczos"},
            "Invalid interpolation: expected one of bilinear, bicubic, random",
        ),
        ({"flip": 1.5}, "Invalid flip: expected a probability"),
    ],
    ids=str,
)
def test_wrong_settings_are_explained(changed, says):
    with pytest.raises(ValueError, match=says):
        TrainTransform(**{"resolution": 224, **changed})
