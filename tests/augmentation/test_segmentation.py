"""Transforms of images with masks: image and mask stay aligned to the pixel."""

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.segmentation import (
    MaskTransform,
    distort_colors,
    fitted,
    resize_mask,
)
from fastervit_jax.data.sources.masks import IGNORE

STRIPES = 24


def _striped(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A picture whose red channel shows the class of each pixel: stripes of rows and columns.

    Red is 10 · class, so the class can be read from a resized picture, except near edges.
    """
    rows = np.arange(height)[:, None] * 4 // height
    columns = np.arange(width)[None, :] * 6 // width
    classes = (rows * 6 + columns).astype(np.uint8)
    pixels = np.stack([classes * 10, np.full_like(classes, 99), 255 - classes * 10], axis=-1)
    return Image.fromarray(pixels), classes


@pytest.mark.parametrize("seed", range(20))
def test_image_and_mask_stay_aligned(seed):
    image, mask = _striped(180, 264)
    transform = MaskTransform(crop=(96, 80), short_side=120, long_side=600, distort=False)
    pixels, classes, (height, width) = transform(image, mask, np.random.default_rng(seed))
    assert pixels.shape == (96, 80, 3) and classes.shape == (96, 80)
    shown = np.rint(pixels[:height, :width, 0] / 10).astype(int)
    # Resizing mixes the colors of classes that meet: compare where all neighbors are of one class.
    inside = classes[:height, :width].astype(int)
    same = np.ones_like(inside, bool)
    for rows in (-2, 0, 2):
        for columns in (-2, 0, 2):
            same &= np.roll(inside, (rows, columns), (0, 1)) == inside
    same[:2] = same[-2:] = False
    same[:, :2] = same[:, -2:] = False
    assert same.sum() > 0.3 * same.size
    np.testing.assert_array_equal(shown[same], inside[same])
    assert (classes[height:] == IGNORE).all() and (classes[:, width:] == IGNORE).all()
    assert not pixels[height:].any() and not pixels[:, width:].any()


def test_a_shift_of_two_pixels_would_be_seen():
    """The comparison above can fail: it tells a mask that is off by three columns."""
    image, mask = _striped(180, 264)
    transform = MaskTransform(crop=(180, 264), short_side=180, ratio=(1, 1), flip=0, distort=False)
    pixels, classes, _ = transform(image, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(np.rint(pixels[..., 0] / 10), classes)
    assert (np.roll(np.rint(pixels[..., 0] / 10), 3, axis=1) != classes).mean() > 0.05


def test_results_depend_on_the_generator_alone():
    image, mask = _striped(100, 150)
    transform = MaskTransform(crop=(64, 64), short_side=80)
    first, again, other = (
        transform(image, mask, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_crops_avoid_one_class():
    """9/10 of the picture are one class; the crops have at most 75 % of it, where ten draws do."""
    mask = np.zeros((200, 400), np.uint8)
    mask[:, 360:] = 1
    image = Image.fromarray(np.zeros((200, 400, 3), np.uint8))
    options = dict(crop=(64, 64), short_side=200, long_side=400, ratio=(1, 1), distort=False)
    shares = []
    for most in (0.75, 1.0):
        transform = MaskTransform(**options, max_class_share=most)
        crops = [transform(image, mask, np.random.default_rng(seed))[1] for seed in range(60)]
        shares.append(np.mean([(crop == 0).mean() <= 0.75 for crop in crops]))
    assert shares[0] > 0.6 > 0.3 > shares[1]


@pytest.mark.parametrize(
    "size, short_side, long_side, expected",
    # By hand: the factor is the smaller of long/longer and short/shorter, rounded half up.
    [((480, 640), 512, 2048, (512, 683)), ((100, 1000), 512, 2048, (205, 2048))],
)
def test_sizes_follow_mmcv(size, short_side, long_side, expected):
    assert fitted(size, short_side=short_side, long_side=long_side) == expected


def test_masks_take_the_nearest_class():
    mask = np.asarray([[1, 2], [3, IGNORE]], np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), np.kron(mask, np.ones((2, 2))))


def test_colors_change_within_their_limits():
    gray = np.full((8, 8, 3), 100, np.uint8)
    values = [distort_colors(gray, np.random.default_rng(seed)).mean() for seed in range(200)]
    # Brightness ±32, then contrast 0.5 to 1.5: (100 ± 32) · [0.5, 1.5].
    assert 34 <= min(values) < 60 and 140 < max(values) <= 198
    assert 0.15 < np.mean([value == 100 for value in values]) < 0.35  # neither: a quarter
