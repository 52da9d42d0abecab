"""The digits: written once, completely, split as ever."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fastervit_jax.data import open_source
from fastervit_jax.data.sources.digits import held_out, write_digits


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("parent") / "digits"
    write_digits(root)
    return root


def test_every_digit_is_written_with_its_pixels_and_label(root):
    digits = load_digits()
    names = {}
    for split in ("train", "validation"):
        for path in (root / split).glob("*/*.png"):
            names[int(path.stem)] = (split, path)
    assert sorted(names) == list(range(1797))
    for number, (_, path) in names.items():
        assert int(path.parent.name) == digits.target[number]
        pixels = np.asarray(Image.open(path), np.float64)
        np.testing.assert_allclose(pixels, digits.images[number] * 255 / 16, atol=0.5)


def test_the_split_is_a_fixed_stratified_fifth(root):
    labels = load_digits().target
    validation = held_out(labels)
    for label in range(10):
        share = validation[labels == label].mean()
        assert abs(share - 0.2) < 0.5 / np.sum(labels == label) + 1e-9
    pinned = hashlib.sha256(np.packbits(validation).tobytes()).hexdigest()
    assert pinned.startswith("ebf45f67cd7569e7"), "the held-out digits changed"
    assert len(open_source(f"folder:{root}/validation")) == validation.sum() == 359


def test_a_second_call_changes_nothing(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_digits(root)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    saved = Image.Image.save

    def save_a_few(self, path, *args, **options):
        if path.name == "0700.png":
            raise KeyboardInterrupt
        saved(self, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", save_a_few)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Image.Image, "save", saved)
    write_digits(tmp_path / "digits")
    assert len(list((tmp_path / "digits").rglob("*.png"))) == 1797


def test_a_directory_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="Name an empty or new directory"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_missing_scikit_learn_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install"):
        write_digits(tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fastervit_jax.data.sources.digits",
        f"--output={tmp_path}/new/digits",
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert f"folder:{tmp_path}/new/digits/train" in done.stdout
    assert len(open_source(f"folder:{tmp_path}/new/digits/train")) == 1438
