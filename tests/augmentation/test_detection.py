"""Transforms of images with boxes: pixels against PIL, boxes against counting marked pixels."""

import collections

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.detection import (
    Plan,
    ResizeSettings,
    apply_to_boxes,
    apply_to_image,
    draw_plan,
    resized,
    shares,
)

OFFICIAL = ResizeSettings()


@pytest.mark.parametrize(
    ("size", "short_side", "long_side", "expected"),
    [  # worked out by hand from DETR's rule
        ((480, 640), 800, 1333, (800, 1066)),
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 900), 800, 1333, (444, 1332)),
        ((900, 300), 800, 1333, (1332, 444)),
        ((500, 500), 400, None, (400, 400)),
        ((800, 1000), 800, 1333, (800, 1000)),
    ],
)
def test_resized(size, short_side, long_side, expected):
    assert resized(size, short_side, long_side) == expected


def test_official_distribution():
    """Flip ½; crop ½; eleven short sides; crops of 384 to 600."""
    rng = np.random.default_rng(0)
    plans = [draw_plan((480, 640), OFFICIAL, rng) for _ in range(4000)]
    assert 0.47 < np.mean([plan.flip for plan in plans]) < 0.53
    cropped = [plan for plan in plans if plan.crop]
    assert 0.47 < len(cropped) / len(plans) < 0.53
    short = collections.Counter(min(plan.size) for plan in plans if not plan.crop)
    assert set(short) == set(range(480, 801, 32))
    assert max(max(plan.size) for plan in plans) <= 1333
    assert {plan.before for plan in cropped} == {(400, 533), (500, 666), (600, 800)}
    for plan in cropped:
        left, top, right, bottom = plan.crop
        assert 0 <= left < right <= plan.before[1]
        assert 0 <= top < bottom <= plan.before[0]
    widths = [plan.crop[2] - plan.crop[0] for plan in cropped]
    assert min(widths) == 384
    assert max(widths) == 600
    heights = {plan.crop[3] - plan.crop[1] for plan in cropped if plan.before == (400, 533)}
    assert min(heights) == 384
    assert max(heights) == 400


def test_pixels():
    """Flip, resize, crop, resize: as PIL does it step by step."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    plan = Plan(True, (40, 56), (10, 5, 50, 37), (80, 100))
    steps = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    steps = steps.resize((56, 40), Image.Resampling.BILINEAR).crop((10, 5, 50, 37))
    steps = steps.resize((100, 80), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(apply_to_image(image, plan)), np.asarray(steps))


@pytest.mark.parametrize("seed", range(20))
def test_boxes_follow_the_pixels(seed):
    """A white rectangle is found again where its box is."""
    rng = np.random.default_rng(seed)
    settings = ResizeSettings(
        short_sides=(200, 240), long_side=400, crop_short_sides=(150, 180), crop_sides=(100, 150)
    )
    size = (int(rng.integers(150, 250)), int(rng.integers(150, 250)))
    left, top = rng.integers(0, 80, 2)
    right, bottom = left + rng.integers(30, 70), top + rng.integers(30, 70)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    plan = draw_plan(size, settings, rng)
    boxes = np.asarray([[left, top, right, bottom]], np.float32)
    moved, kept = apply_to_boxes(boxes, size, plan)
    white = np.asarray(apply_to_image(Image.fromarray(pixels), plan))[..., 0] > 127
    assert kept[0] == white.any() or not white.any()
    if white.any():
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(moved[0], found, atol=2.5)
    assert moved.min() >= 0
    assert (moved[:, 2:] <= np.asarray([plan.size[1], plan.size[0]]) + 1e-3).all()


def test_boxes_by_hand():
    boxes = np.asarray([[10, 20, 30, 40], [90, 0, 100, 10]], np.float32)
    flipped, kept = apply_to_boxes(boxes, (50, 100), Plan(True, None, None, (100, 200)))
    np.testing.assert_array_equal(flipped, [[140, 40, 180, 80], [0, 0, 20, 20]])
    assert kept.all()
    plan = Plan(False, (100, 200), (30, 50, 130, 100), (50, 100))
    cropped, kept = apply_to_boxes(boxes, (50, 100), plan)
    np.testing.assert_array_equal(cropped[0], [0, 0, 30, 30])
    assert kept.tolist() == [True, False], "the second box lies outside of the crop"
    np.testing.assert_allclose(shares(cropped[:1], (50, 100)), [[0.15, 0.3, 0.3, 0.6]])
    assert plan.fitted((40, 200)).size == (40, 80)
