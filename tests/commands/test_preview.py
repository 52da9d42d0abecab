"""The preview shows what the network gets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.augmentation.operations import Operation, apply_operation
from fastervit_jax.augmentation.rand_augment import parse_rand_augment
from fastervit_jax.commands.preview import finished_pictures, operation_pictures
from fastervit_jax.data import open_source, train_batches
from tests.data.numbered import NUM_IMAGES
from tests.data.photographs import photographs

ROOT = Path(__file__).parents[2]
PLAIN = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "smoothing": 0.0, "erasing_probability": 0.0}


@pytest.fixture(scope="module")
def source(numbered_folder):
    return open_source(f"folder:{numbered_folder}")


def test_every_operation_is_shown_at_its_magnitude():
    image = photographs()["coffee"].resize((64, 64))
    pictures = operation_pictures(image, parse_rand_augment("rand-m9-mstd0.5-inc1"))
    by_title = {picture.title: picture.pixels for picture in pictures}
    assert len(by_title) == len(pictures) == 1 + 6 + 2 * 9
    rotated = apply_operation(image, Operation("Rotate", -27.0, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(by_title["Rotate -27"], rotated)
    np.testing.assert_array_equal(by_title["Invert"], 255 - np.asarray(image))
    np.testing.assert_array_equal(by_title["no operation"], image)


def test_without_mixing_the_pictures_are_the_loaders_images(source):
    transform = TrainTransform(16)
    pictures = finished_pictures(source, transform, AugmentationSettings(3, **PLAIN), seed=3)
    batch = next(train_batches(source, transform, batch_size=32, seed=3, num_steps=1))
    for picture, image, label in zip(pictures, batch["image"], batch["label"], strict=True):
        np.testing.assert_array_equal(picture.pixels, image)
        assert picture.title == f"1.00 class_{label}"


def test_mixed_pictures_carry_their_soft_labels(source):
    """One lambda a row; an image's partner stands at the mirrored place of its row."""
    settings = AugmentationSettings(3, smoothing=0.0, erasing_probability=0.0)
    pictures = finished_pictures(source, TrainTransform(16), settings, seed=3)
    batch = next(train_batches(source, TrainTransform(16), batch_size=32, seed=3, num_steps=1))
    titles = np.array([picture.title for picture in pictures]).reshape(4, 8)
    lambdas = []
    for row, own in zip(titles, batch["label"].reshape(4, 8), strict=True):
        partner = own[::-1]
        shares = [dict(line.split()[::-1] for line in title.splitlines()) for title in row]
        mixed = np.flatnonzero(own != partner)
        lambdas.append(float(shares[mixed[0]][f"class_{own[mixed[0]]}"]))
        for share, one, other in zip(shares, own, partner, strict=True):
            expected = {f"class_{one}": lambdas[-1]}
            expected[f"class_{other}"] = 1 - lambdas[-1] if one != other else 1.0
            assert {name: float(value) for name, value in share.items()} == pytest.approx(
                expected, abs=0.011
            )
    assert len(set(lambdas)) == 4


def test_a_set_too_small_for_the_grid_is_explained(tmp_path, source):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "0.png").write_bytes(source[0].encoded)
    few = open_source(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match=r"Invalid batch_size=32: expected at most"):
        finished_pictures(few, TrainTransform(16), AugmentationSettings(1), seed=0)


def test_the_command(tmp_path, numbered_folder):
    assert NUM_IMAGES > 32
    output = tmp_path / "preview.png"
    command = [
        sys.executable,
        "-m",
        "fastervit_jax",
        "preview",
        f"--config={ROOT / 'configs' / 'digits.py'}",
        f"--config.data.train=folder:{numbered_folder}",
        "--config.rand_augment=rand-m9-mstd0.5-inc1",
        f"--output={output}",
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    with Image.open(output) as image:
        assert image.width > 1000 and image.height > 1000
