"""Sets prepared by TFDS: read without TensorFlow, and what is said where one cannot be."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fastervit_jax.data import EvalTransform, eval_batches, open_source, train_batches
from tests.data.imagenet_fixture import CLASSES, prepare_photographs, train_files, validation_files

SPEC = "tfds:photographs@train"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare_photographs(data_dir)
    return data_dir


def test_records_are_the_files_with_their_labels(data_dir):
    files = train_files()
    source = open_source(SPEC, data_dir=str(data_dir))
    assert len(source) == len(files) == 48 and source.class_names == CLASSES
    read = {}
    for index in range(len(source)):
        encoded, label, key = source[index]
        assert key.startswith(f"{SPEC} record {index} (")
        name = key.split("(")[1].rstrip(")")
        assert name.split("_")[0] == CLASSES[label]
        read[name] = encoded
    assert read == files


def test_slices_and_sums_of_splits(data_dir):
    def names(spec):
        source = open_source(f"tfds:photographs{spec}", data_dir=str(data_dir))
        return [source[i].key.split("(")[1] for i in range(len(source))]

    whole = names("@train")
    assert names("@train[:75%]") == whole[:36] and names("@train[75%:]") == whole[36:]
    assert names(":1.0.0@train[3:5]") == whole[3:5]
    assert names("@train+validation") == whole + names("@validation")


def test_the_environment_names_the_directory(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(open_source(SPEC)) == 48
    with pytest.raises(ValueError, match=r"the directory .* does not exist"):
        open_source(SPEC, data_dir=f"{data_dir}/elsewhere")


def test_pickled_for_workers(data_dir):
    source = open_source(SPEC, data_dir=str(data_dir))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[7] == source[7] and len(pickle.dumps(source)) < 1000


def test_no_tensorflow_is_imported_not_even_by_workers(data_dir, tmp_path):
    """A package that tells when it is imported stands in TensorFlow's place."""
    (tmp_path / "tensorflow").mkdir()
    told = tmp_path / "tensorflow was imported"
    (tmp_path / "tensorflow" / "__init__.py").write_text(f"open({str(told)!r}, 'w')")
    script = tmp_path / "read.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from fastervit_jax.augmentation.host import TrainTransform
            from fastervit_jax.data import *

            if __name__ == "__main__":
                train = open_source("{SPEC}", data_dir="{data_dir}")
                validation = open_source("tfds:photographs@validation", data_dir="{data_dir}")
                check_same_classes(train, validation)
                transform = EvalTransform(32, 0.875, "center")
                steps = train_batches(
                    train, TrainTransform(32), batch_size=16, seed=0, num_steps=3, num_workers=1
                )
                print(sum(len(batch["label"]) for batch in steps))
                batches = eval_batches(validation, transform, batch_size=5)
                print(sum(int(batch["mask"].sum()) for batch in batches))
            """
        )
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )
    assert done.stdout.split() == [b"48", b"12"], done.stderr.decode()
    assert not told.exists()


def test_batches_show_the_records(data_dir):
    source = open_source("tfds:photographs@validation", data_dir=str(data_dir))
    transform = EvalTransform(64, 0.875, "center")
    files = validation_files()
    for batch in eval_batches(source, transform, batch_size=12):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            name = source[int(index)].key.split("(")[1].rstrip(")")
            np.testing.assert_array_equal(image, transform(files[name]))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tfds:photographs", r"expected tfds:NAME\[/CONFIG\[:VERSION\]\]@SPLIT"),
        ("tfds:@train", "Invalid data set tfds:"),
        ("tfds:photo graphs@train", "Invalid data set tfds:"),
        ("tfds:imagenet2012@train", "imagenet2012 is not prepared in .* Prepare it there"),
        ("tfds:photographs:2.0.0@train", "photographs:2.0.0 is not prepared in"),
        ("tfds:photographs@val", r"has no split 'val'\. Choose from test, train, validation"),
        ("tfds:photographs@train[zz]", r"has no split 'train\[zz\]'"),
        ("tfds:photographs@train[:0]", r"has no images\. Use a larger slice"),
    ],
)
def test_a_wrong_specification_is_explained(data_dir, spec, says):
    with pytest.raises(ValueError, match=says):
        open_source(spec, data_dir=str(data_dir))


def test_the_sets_own_directory_is_not_the_data_directory(data_dir):
    with pytest.raises(ValueError, match="set --data_dir or TFDS_DATA_DIR to its directory"):
        open_source(SPEC, data_dir=f"{data_dir}/photographs")


def change_info(folder, change):
    path = folder / "dataset_info.json"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("break_it", "error", "says"),
    [
        (
            lambda folder: change_info(
                folder, lambda text: json.dumps(json.loads(text) | {"fileFormat": "tfrecord"})
            ),
            ValueError,
            r"got tfrecord, which has no random access\. Convert it .*guides/train-imagenet.md",
        ),
        (
            lambda folder: change_info(folder, lambda text: text[:100]),
            ValueError,
            "description of .* cannot be read",
        ),
        (
            lambda folder: next(folder.glob("*train.array_record*")).unlink(),
            OSError,
            r"record 0 .* missing or damaged\. Copy or prepare the data set again",
        ),
        (
            lambda folder: os.truncate(next(folder.glob("*train.array_record*")), 1000),
            OSError,
            r"record 0 .* missing or damaged\. Copy or prepare the data set again",
        ),
    ],
    ids=["tfrecord", "broken description", "missing file", "truncated file"],
)
def test_a_broken_preparation_is_explained(data_dir, tmp_path, break_it, error, says):
    shutil.copytree(data_dir, tmp_path / "copy")
    break_it(tmp_path / "copy" / "photographs" / "1.0.0")
    with pytest.raises(error, match=says):
        open_source(SPEC, data_dir=str(tmp_path / "copy"))[0]


def test_a_split_without_labels_is_refused(data_dir):
    source = open_source("tfds:photographs@test", data_dir=str(data_dir))
    batches = eval_batches(source, EvalTransform(8, 1.0, "center"), batch_size=2)
    with pytest.raises(ValueError, match=r"Invalid label .* 0 to 2, got -1\. .* a split that has"):
        next(batches)
    loader = train_batches(
        source, lambda encoded, rng: np.zeros((4, 4, 3)), batch_size=2, seed=0, num_steps=1
    )
    with pytest.raises(ValueError, match="got -1"):
        next(loader)


def test_a_set_that_is_no_classification_is_refused(tmp_path):
    import tensorflow_datasets as tfds

    class Texts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"text": "no image"}

    Texts(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    with pytest.raises(ValueError, match=r"not an image classification .* got the features text"):
        open_source("tfds:texts@train", data_dir=str(tmp_path))


def test_a_set_of_many_files_raises_the_limit_of_open_files(data_dir):
    """Under a soft limit that its files exceed; a hard limit below them is explained."""
    code = f"""
import resource
from fastervit_jax.data.sources import tfds as tfds_source
resource.setrlimit(resource.RLIMIT_NOFILE, (250, 400))
tfds_source.TfdsSource("photographs@train", data_dir="{data_dir}")[0]
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (257, 400)
try:
    tfds_source._allow_open_files(1024)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "has 1024 files, but this process may only open 400. Raise" in done.stdout, done.stderr
