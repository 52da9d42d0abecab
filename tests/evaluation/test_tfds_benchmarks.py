"""The benchmarks as TFDS's own builders prepare them, from small archives in their own layouts.

Building needs TensorFlow: in this environment, or in the one whose Python the environment variable
FASTERVIT_PREPARE_PYTHON names. Reading is done here, and needs none.
"""

import os
import subprocess
import sys
import tarfile

import pytest

from fastervit_jax.data import decode_eval
from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.evaluation.imagenet_classes import IMAGENET_A, IMAGENET_R, imagenet_1k
from tests.evaluation.photo_folders import write_folder

PYTHON = os.environ.get("FASTERVIT_PREPARE_PYTHON", sys.executable)

# Runs the package's builder on files that stand where its download would have been unpacked.
BUILD = """
import sys
from unittest import mock
import tensorflow_datasets as tfds

name, found, data_dir = sys.argv[1:]
builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
fetched = mock.patch.multiple(
    tfds.download.DownloadManager,
    download=lambda self, url: found,
    download_and_extract=lambda self, url: found,
)
with fetched:
    builder.download_and_prepare()
"""


def _can_build() -> bool:
    command = [PYTHON, "-c", "import tensorflow, tensorflow_datasets"]
    return subprocess.run(command, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not _can_build(),
        reason="TFDS's builders need TensorFlow: pip install 'fastervit-jax[prepare]', or name a "
        "Python that has it in FASTERVIT_PREPARE_PYTHON",
    ),
]

K = imagenet_1k()
CASES = {
    "imagenet-a": ("imagenet_a", "imagenet-a", IMAGENET_A[5:8], IMAGENET_A),
    "imagenet-r": ("imagenet_r", "imagenet-r", IMAGENET_R[90:93], IMAGENET_R),
    "imagenet-v2": (
        "imagenet_v2/matched-frequency",
        "imagenetv2-matched-frequency-format-val",
        ("0", "9", "10", "999"),
        K,
    ),
    "imagenet-sketch": ("imagenet_sketch", "sketch", (K[3], K[700]), K),
}


@pytest.mark.parametrize("benchmark", CASES)
def test_labels_are_the_folders(benchmark, tmp_path):
    builder, top, folders, answers = CASES[benchmark]
    write_folder(tmp_path / "archive" / top, folders, 2)
    for path in (tmp_path / "archive").rglob("*.JPEG"):  # no name twice, as in the archives
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    found = tmp_path / "archive"
    if benchmark == "imagenet-sketch":  # read from its archive, not unpacked
        found = tmp_path / "sketch.tar"
        with tarfile.open(found, "w") as archive:
            for path in sorted((tmp_path / "archive").rglob("*.JPEG")):
                archive.add(path, path.relative_to(tmp_path / "archive"))
    data_dir = tmp_path / "prepared"
    built = subprocess.run(
        [PYTHON, "-c", BUILD, builder, str(found), str(data_dir)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr

    task = open_evaluation_set(
        benchmark, model_classes=None, num_logits=1000, data_dir=str(data_dir)
    )
    examples = [task.source[index] for index in range(len(task.source))]
    assert len(examples) == 2 * len(folders)
    seen = set()
    for example in examples:
        identifier = task.source.class_names[example.label]
        logit = example.label if task.logits is None else task.logits[example.label]
        assert K[logit] == identifier
        stored = next(
            path
            for path in (tmp_path / "archive").rglob("*.JPEG")
            if path.read_bytes() == example.encoded
        )
        folder = stored.parent.name
        assert identifier == (K[int(folder)] if folder.isdecimal() else folder)
        image = decode_eval(example.encoded, resolution=32, crop_fraction=0.875, crop_mode="center")
        assert image.shape == (32, 32, 3)
        seen.add(stored)
    assert len(seen) == len(examples)
    assert tuple(task.source.class_names) == tuple(answers)
