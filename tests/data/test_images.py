"""Decoding and the evaluation transform, without the reference at hand."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import DamagedImageError, EvalTransform, decode_eval
from fastervit_jax.data.images import decode_rgb
from tests.data.photographs import encode, files_of_every_kind, photographs


def test_every_kind_of_file_decodes():
    for name, encoded in files_of_every_kind().items():
        image = decode_eval(encoded, resolution=(64, 48), crop_fraction=0.875, crop_mode="center")
        assert image.shape == (64, 48, 3) and image.dtype == np.uint8, name


def test_a_crop_of_its_own_size_is_the_image_itself():
    """Nothing to scale, nothing to cut: the file's own pixels."""
    pixels = np.asarray(photographs()["astronaut"])
    encoded = encode(photographs()["astronaut"], "PNG")
    for mode in ("center", "squash"):
        image = decode_eval(encoded, resolution=512, crop_fraction=1.0, crop_mode=mode)
        np.testing.assert_array_equal(image, pixels)


def test_a_png_called_jpeg_and_exif_rotation_change_nothing():
    files = files_of_every_kind()
    plain = encode(photographs()["chelsea"], "JPEG")
    options = {"resolution": 64, "crop_fraction": 1.0, "crop_mode": "center"}
    np.testing.assert_array_equal(
        decode_eval(files["jpeg exif rotated"], **options), decode_eval(plain, **options)
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 1.0, "center"), "Invalid resolution"),
        (((1, 2, 3), 1.0, "center"), "Invalid resolution"),
        ((224.0, 1.0, "center"), "Invalid resolution"),
        ((224, 0.0, "center"), "Invalid crop_fraction"),
        ((224, 1.1, "center"), "Invalid crop_fraction"),
        ((224, 1.0, "centre"), 'Invalid crop_mode: expected "center" or "squash"'),
    ],
)
def test_wrong_settings_are_explained(arguments, says):
    with pytest.raises(ValueError, match=says):
        EvalTransform(*arguments)


def test_importing_the_data_layer_is_light():
    heavy = "'tensorflow', 'tensorflow_datasets', 'grain', 'torch'"
    code = f"import sys, fastervit_jax.data; assert not {{{heavy}}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


EVERY_VALUE = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def _saved(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "encoded",
    [
        _saved(EVERY_VALUE, "PNG"),
        _saved(EVERY_VALUE, "TIFF"),
        _saved(EVERY_VALUE.astype(">u2"), "TIFF"),
    ],
    ids=["png", "tiff", "tiff, big endian"],
)
def test_16_bit_gray_is_scaled_to_8(encoded):
    gray = np.asarray(decode_rgb(encoded))
    assert gray.shape == (256, 256, 3)
    np.testing.assert_array_equal(gray[..., 0], EVERY_VALUE // 257)
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])


def test_a_tiff_that_states_12_bits_is_scaled_by_them():
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    gray = np.asarray(decode_rgb(_saved(pixels, "TIFF", tiffinfo={281: 4095})))
    np.testing.assert_array_equal(gray[..., 1], pixels.astype(int) * 255 // 4095)
    # A statement that the pixels contradict does not count.
    wrong = np.asarray(decode_rgb(_saved(EVERY_VALUE, "TIFF", tiffinfo={281: 4095})))
    np.testing.assert_array_equal(wrong[..., 1], EVERY_VALUE // 257)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize(
    "read", [EvalTransform(32, 1.0, "center"), TrainTransform(32)], ids=["eval", "train"]
)
def test_pixels_of_unknown_range_are_refused(dtype, read):
    encoded = _saved(EVERY_VALUE.astype(dtype), "TIFF")
    arguments = (np.random.default_rng(0),) if isinstance(read, TrainTransform) else ()
    with pytest.raises(DamagedImageError, match=r"range is not known\. Scale them to 0 to 255"):
        read(encoded, *arguments)
