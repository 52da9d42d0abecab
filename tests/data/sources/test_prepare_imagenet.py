"""The commands of the guide on ImageNet, on a real `imagenet2012` build from small archives.

Building needs TensorFlow: in this environment, or in the one whose Python the environment variable
FASTERVIT_PREPARE_PYTHON names. Reading is done here, and needs none.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import open_source, train_batches
from fastervit_jax.data.images import decode_rgb
from fastervit_jax.training.reporting import read_metrics
from tests.data.imagenet_fixture import (
    CLASSES,
    CMYK_FILE,
    NUM_VALIDATION,
    PNG_FILE,
    TRAIN_PER_CLASS,
    train_files,
    validation_files,
    write_archives,
)
from tests.parallel.hosts import start

DOCS = Path(__file__).parents[3] / "docs" / "guides" / "train-imagenet.md"
PYTHON = os.environ.get("FASTERVIT_PREPARE_PYTHON", sys.executable)


def can_import(module):
    if sys.executable == PYTHON:
        return importlib.util.find_spec(module) is not None
    return subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_import("tensorflow"),
        reason="building imagenet2012 needs TensorFlow: pip install 'fastervit-jax[prepare]', or "
        "name a Python that has it in FASTERVIT_PREPARE_PYTHON",
    ),
]


def run_block(number, home, **replace):
    """Runs the n-th bash block of the guide that a test is said to run, below a home directory."""
    blocks = re.findall(
        r"runs this block as it stands. -->\n```bash\n(.*?)```", DOCS.read_text(), re.S
    )
    code = blocks[number]
    for old, new in replace.items():
        assert old in code
        code = code.replace(old, new)
    bin_dir = home / "bin"
    bin_dir.mkdir(exist_ok=True)
    if not (bin_dir / "python").exists():
        (bin_dir / "python").write_text(f'#!/bin/sh\nexec "{PYTHON}" "$@"\n')
        (bin_dir / "python").chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    environment.pop("TFDS_DATA_DIR", None)
    done = subprocess.run(
        ["bash", "-e", "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def new_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "Downloads").mkdir()
    write_archives(home / "Downloads")
    return home


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data directory of an imagenet2012 prepared with the documented command."""
    home = new_home(tmp_path_factory)
    run_block(0, home)
    return str(home / "tensorflow_datasets")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The same, prepared as TFRecord and converted with the documented command."""
    if not can_import("apache_beam"):
        pytest.skip("converting needs apache-beam")
    home = new_home(tmp_path_factory)
    run_block(0, home, array_record="tfrecord")
    data_dir = str(home / "tensorflow_datasets")
    with pytest.raises(ValueError, match=r"got tfrecord, .* Convert it to array_record"):
        open_source("tfds:imagenet2012@train", data_dir=data_dir)
    run_block(1, home)
    return data_dir


def records(source):
    read = {}
    for index in range(len(source)):
        encoded, label, key = source[index]
        read[key.split("(")[1].rstrip(")")] = (encoded, source.class_names[label])
    return read


@pytest.mark.parametrize("how", ["prepared", "converted"])
def test_the_documented_commands_give_the_archives_images(how, request):
    data_dir = request.getfixturevalue(how)
    train = open_source("tfds:imagenet2012@train", data_dir=data_dir)
    assert train.num_classes == 1000 and len(train) == TRAIN_PER_CLASS * len(CLASSES)
    read, files = records(train), train_files()
    assert read.keys() == files.keys()
    for name, (encoded, synset) in read.items():
        assert name.startswith(synset)
        if name in (CMYK_FILE, PNG_FILE):  # repaired by TFDS: an RGB JPEG now
            assert encoded.startswith(b"\xff\xd8") and encoded != files[name]
            difference = np.asarray(decode_rgb(encoded), float) - np.asarray(
                decode_rgb(files[name])
            )
            assert np.abs(difference).mean() < 12
        else:
            assert encoded == files[name]
    validation = open_source("tfds:imagenet2012@validation", data_dir=data_dir)
    read = {name: encoded for name, (encoded, _) in records(validation).items()}
    assert read == validation_files() and len(read) == NUM_VALIDATION


def test_it_loads_with_workers(prepared):
    source = open_source("tfds:imagenet2012@train", data_dir=prepared)
    options = {"batch_size": 8, "seed": 0, "num_steps": 6}
    here = list(train_batches(source, TrainTransform(32), **options))
    there = list(train_batches(source, TrainTransform(32), num_workers=2, **options))
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_two_processes_train_on_it(prepared, tmp_path):
    """The smoke recipe, with 1000 classes: each process reads its half of every batch."""
    flags = ["--config=configs/smoke.py", f"--workdir={tmp_path}/run", "--config.mesh.fsdp=2"]
    flags += [f"--config.data.data_dir={prepared}", "--config.data.num_workers=0"]
    results = start(2, flags, program=("-m", "tests.data.recorded_train"))
    assert [code for code, *_ in results] == [0, 0], results
    records = read_metrics(tmp_path / "run")
    losses = [record["loss"] for record in records if "loss" in record]
    # Two epochs of 48 images in batches of 8; 12 images are held out.
    assert len(losses) == 12 and np.all(np.isfinite(losses))
    assert any("validation_top1" in record for record in records)

    read = [(tmp_path / f"run.read_{host}").read_text().splitlines() for host in range(2)]
    trained = [[key for key in keys if "@train" in key] for keys in read]
    assert [len(keys) for keys in trained] == [48, 48]
    for epoch in (slice(0, 24), slice(24, 48)):
        assert len({*trained[0][epoch], *trained[1][epoch]}) == 48
    held_out = [{key for key in keys if "@validation" in key} for keys in read]
    assert not held_out[0] & held_out[1] and len(held_out[0] | held_out[1]) == NUM_VALIDATION
