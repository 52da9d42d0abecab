"""The host's training images against timm 0.9.16: every pixel."""

import io

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision_functional

from fastervit_jax.augmentation.host import CropBox, TrainTransform, crop_and_resize, draw_crop_box
from fastervit_jax.augmentation.operations import GEOMETRIC, Operation, apply_operation
from fastervit_jax.augmentation.rand_augment import (
    FIFTEEN,
    operation_argument,
    parse_rand_augment,
)
from tests.data.photographs import encode, photographs

RECIPE = "rand-m9-mstd0.5-inc1"
TIMM_FILL = (124, 116, 104)
MAGNITUDES = (0.0, 3.3, 8.9, 9.0, 9.43, 10.0)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


# Operations that timm has twice, with and without "Increasing" in the name.
VARYING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}


def timm_name(name: str, increasing: bool) -> str:
    """timm's name of one of our operations."""
    if name.startswith("Translate"):
        return name + "Rel"
    return name + "Increasing" * (increasing and name in VARYING)


def timm_posterize(image, bits_to_keep, **_):
    """timm's own over Pillow's `posterize` of its time; today's refuses to keep 0 bits."""
    mask = ~(2 ** (8 - bits_to_keep) - 1)
    return Image.fromarray((np.asarray(image).astype(int) & mask).astype(np.uint8))


@pytest.fixture(scope="module")
def images():
    photos = photographs()
    images = [photos[name].resize((224, 224)) for name in ("astronaut", "chelsea", "flower")]
    images.append(photos["coffee"].resize((97, 130)))
    images.append(photos["china"].resize((384, 384)).point(lambda level: 60 + level // 3))
    return images


@pytest.mark.parametrize(
    ("name", "increasing"),
    [(name, True) for name in (*FIFTEEN, "Desaturate", "GaussianBlur")]
    + [(name, False) for name in sorted(VARYING)],
)
def test_every_pixel_of_every_operation(images, name, increasing):
    """At magnitudes 0 to 10, both signs and both filters: argument and image are timm's."""
    timm_operation = auto_augment.NAME_TO_OP[timm_name(name, increasing)]
    to_argument = auto_augment.LEVEL_TO_ARG[timm_name(name, increasing)]
    compared = 0
    for magnitude in MAGNITUDES:
        for negative in (False, True):
            argument = operation_argument(name, magnitude, increasing=increasing, negative=negative)
            with pytest.MonkeyPatch.context() as patch:
                sign = -1 if negative else 1
                patch.setattr(auto_augment, "_randomly_negate", lambda v, sign=sign: sign * v)
                arguments = to_argument(magnitude, {}) if to_argument else ()
            assert arguments == (() if argument is None else (argument,))
            no_bits = name == "Posterize" and argument == 0
            theirs = timm_posterize if no_bits else timm_operation
            for resampling in FILTERS if name in GEOMETRIC else (None,):
                for image in images:
                    ours = np.asarray(apply_operation(image, Operation(name, argument, resampling)))
                    keywords = {"fillcolor": TIMM_FILL, "resample": resampling}
                    expected = np.asarray(theirs(image, *arguments, **keywords))
                    differing = np.count_nonzero((ours != expected).any(axis=-1))
                    assert differing == 0, f"{name} {argument} {resampling}: {differing} pixels"
                    compared += 1
    assert compared >= len(MAGNITUDES) * 2 * len(images)


@pytest.mark.parametrize("resolution", [224, 384, 768, (224, 160)], ids=str)
def test_every_pixel_of_the_crop(resolution):
    rng = np.random.default_rng(0)
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    for image in photographs().values():
        boxes = [
            draw_crop_box(
                image.height, image.width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), rng=rng
            )
            for _ in range(4)
        ]
        boxes += [CropBox(0, 0, image.height, image.width), CropBox(3, 5, 1, 2)]
        for box in boxes:
            for name, resampling in zip(("bilinear", "bicubic"), FILTERS, strict=True):
                ours = np.asarray(crop_and_resize(image, box, resolution, resampling))
                theirs = torchvision_functional.resized_crop(
                    image,
                    box.top,
                    box.left,
                    box.height,
                    box.width,
                    [height, width],
                    InterpolationMode(name),
                )
                np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_every_pixel_of_whole_images():
    """timm's own composed transform, its random draws replaced by those we made."""
    ours = TrainTransform(224, rand_augment=RECIPE)
    theirs = create_transform(
        input_size=(3, 224, 224),
        is_training=True,
        use_prefetcher=True,
        auto_augment=RECIPE,
        interpolation="random",
        mean=(0.485, 0.456, 0.406),
    )
    crop, flip, augment = theirs.transforms[:3]
    by_name = {op.name: op for op in augment.ops}
    photos = list(photographs().values())
    files = [encode(photo, "BMP") for photo in photos]
    operations_seen = 0
    for seed in range(48):
        photo = photos[seed % len(photos)]
        image = ours(files[seed % len(photos)], np.random.default_rng(seed))
        # The same draws again, in the transform's order.
        rng = np.random.default_rng(seed)
        box = draw_crop_box(
            photo.height, photo.width, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), rng=rng
        )
        resampling = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)[rng.integers(2)]
        flipped = rng.random() < 0.5
        operations = parse_rand_augment(RECIPE).draw(rng)
        operations_seen += len(operations)
        with pytest.MonkeyPatch.context() as patch:
            given = (box.top, box.left, box.height, box.width)
            patch.setattr(crop, "get_params", lambda *_, given=given: given)
            patch.setattr(crop, "interpolation", resampling)
            patch.setattr(flip, "p", float(flipped))
            expected = flip(crop(photo))
            for name, argument, filter_ in operations:
                op = by_name[timm_name(name, increasing=True)]
                arguments = () if argument is None else (argument,)
                keywords = op.kwargs | ({"resample": filter_} if filter_ else {})
                expected = op.aug_fn(expected, *arguments, **keywords)
        np.testing.assert_array_equal(image, theirs.transforms[3](expected).transpose(1, 2, 0))
    assert operations_seen > 30


def test_a_fixed_filter_is_the_operations_filter_too():
    transform = TrainTransform(32, interpolation="bilinear", rand_augment=RECIPE)
    theirs = create_transform(
        32, is_training=True, auto_augment=RECIPE, interpolation="bilinear"
    ).transforms[2]
    assert {op.kwargs["resample"] for op in theirs.ops} == {Image.Resampling.BILINEAR}
    drawn = [transform._augment.draw(np.random.default_rng(seed)) for seed in range(200)]
    filters = {op.resampling for operations in drawn for op in operations} - {None}
    assert filters == {Image.Resampling.BILINEAR}


def test_training_decodes_as_timm_does():
    """The dataset's `convert("RGB")`, on what is neither RGB nor opaque."""
    chelsea = photographs()["chelsea"]
    files = [
        encode(chelsea.convert("L"), "JPEG"),
        encode(chelsea.convert("CMYK"), "JPEG"),
        encode(chelsea.quantize(32), "PNG"),
        encode(chelsea.convert("RGBA"), "PNG"),
    ]
    transform = TrainTransform(64, rand_augment=RECIPE)
    for encoded in files:
        converted = Image.open(io.BytesIO(encoded)).convert("RGB")
        expected = transform.distort(converted, np.random.default_rng(0))
        np.testing.assert_array_equal(
            transform(encoded, np.random.default_rng(0)), np.asarray(expected)
        )
