"""Decoding and the evaluation transform, without the reference at hand."""

import subprocess
import sys

import numpy as np
import pytest

from fastervit_jax.data import EvalTransform, decode_eval
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
