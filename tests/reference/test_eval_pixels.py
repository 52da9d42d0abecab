"""Evaluation images against timm's own transform: every pixel."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from fastervit_jax.data import decode_eval
from tests.data.photographs import files_of_every_kind

# The settings of the official models (docs/reference/numbers.md, section 3), and heights that
# differ from widths.
SETTINGS = [
    (224, 0.875, "center"),
    (224, 1.0, "center"),
    (224, 0.95, "squash"),
    (384, 0.875, "center"),
    (384, 1.0, "squash"),
    (768, 0.93, "squash"),
    (768, 1.0, "center"),
    ((224, 200), 0.875, "center"),
    ((200, 224), 1.0, "center"),
    ((576, 960), 0.875, "center"),
    ((541, 960), 0.9, "squash"),
]


@pytest.fixture(scope="module")
def files():
    return files_of_every_kind()


def timm_image(encoded: bytes, resolution, crop_fraction: float, crop_mode: str) -> np.ndarray:
    """What the official evaluation feeds its loader: timm's dataset and transform, uint8 HWC."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    transform = create_transform(
        input_size=(3, height, width),
        is_training=False,
        use_prefetcher=True,
        interpolation="bicubic",
        crop_pct=crop_fraction,
        crop_mode=crop_mode,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remark on palettes with transparency
        image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I;16"):
            # timm would clip 16-bit gray to white. We scale it, and do the rest as timm does.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("RGB")
    return transform(image).transpose(1, 2, 0)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_pixel_equals_timms(files, setting):
    resolution, crop_fraction, crop_mode = setting
    for name, encoded in files.items():
        ours = decode_eval(
            encoded, resolution=resolution, crop_fraction=crop_fraction, crop_mode=crop_mode
        )
        theirs = timm_image(encoded, *setting)
        assert ours.shape == theirs.shape and ours.dtype == np.uint8, name
        differing = np.count_nonzero((ours != theirs).any(axis=-1))
        assert differing == 0, f"{name}: {differing} of {ours[..., 0].size} pixels differ"


def test_the_comparison_sees_a_different_filter_and_a_shifted_crop(files):
    encoded = files["jpeg odd size"]
    theirs = timm_image(encoded, 224, 0.875, "center")
    for crop_fraction, crop_mode in ((0.88, "center"), (0.875, "squash")):
        ours = decode_eval(
            encoded, resolution=224, crop_fraction=crop_fraction, crop_mode=crop_mode
        )
        assert np.mean((ours != theirs).any(axis=-1)) > 0.5
