"""Whole runs of train.py and eval.py on the digits, as a user has them."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.data.sources.digits import write_digits
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.runs.workdir import load_trained
from fastervit_jax.training.reporting import read_metrics
from tests.small.run import FLAGS, ROOT, as_flags


def _one_device() -> str:
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"


def _output(*command, **environment) -> str:
    """What a command of this project prints; it must end well."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def _train(workdir, data_dir, **changes) -> str:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    command = ["train.py", "--config=configs/digits.py", f"--workdir={workdir}"]
    command += [f"--config.data.data_dir={data_dir}", *as_flags({**FLAGS, **changes})]
    return _output(*command, XLA_FLAGS=_one_device())


def _evaluate(*flags) -> dict:
    return json.loads(_output("eval.py", *flags).splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    output = _train(root / "first", root / "data")
    return root, output


def test_work_directory_is_complete(run):
    root, output = run
    workdir = root / "first"
    assert "359 held-out images" in output
    for name in ("config.json", "metrics.jsonl", "checkpoints", "curves.png", "predictions.png"):
        assert (workdir / name).exists(), name
    assert list(workdir.glob("events.out.tfevents.*"))
    for picture in ("curves.png", "predictions.png"):
        assert np.asarray(Image.open(workdir / picture).convert("L")).std() > 5
    records = read_metrics(workdir)
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 11]
    assert all(np.isfinite(r["loss"]) for r in records if "loss" in r)


def test_evaluation_of_the_checkpoint_is_that_of_training(run):
    root, _ = run
    trained = [r for r in read_metrics(root / "first") if "validation_top1" in r][-1]
    measured = _evaluate(f"--weights={root / 'first'}")
    assert measured["images"] == 359
    assert measured["top1"] == trained["validation_top1"]
    assert measured["top5"] == trained["validation_top5"]
    assert measured["loss"] == pytest.approx(trained["validation_loss"], rel=1e-6)


@pytest.mark.slow
def test_same_command_twice_is_the_same_run_bit_for_bit(run):
    root, _ = run
    _train(root / "second", root / "data")
    first, second = (load_trained(root / name, ema=False) for name in ("first", "second"))
    for name in ("first", "second"):
        records = [r for r in read_metrics(root / name) if "loss" in r]
        assert records
    losses = [
        [r["loss"] for r in read_metrics(root / n) if "loss" in r] for n in ("first", "second")
    ]
    assert losses[0] == losses[1]
    _assert_equal_weights(first.model, second.model)


@pytest.mark.slow
def test_going_on_is_the_uninterrupted_run(run):
    root, _ = run
    _train(root / "whole", root / "data", epochs=2)
    _train(root / "parts", root / "data", epochs=2, stop_after_epochs=1)
    output = _train(root / "parts", root / "data", epochs=2)
    assert "Resuming from step 11 of 22" in output
    whole, parts = (load_trained(root / name) for name in ("whole", "parts"))
    _assert_equal_weights(whole.model, parts.model)
    steps = [r["step"] for r in read_metrics(root / "parts") if "loss" in r]
    assert steps == sorted(set(steps))


def _assert_equal_weights(first, second):
    for a, b in zip(arrays_of(first), arrays_of(second), strict=True):
        for name in a:
            assert np.array_equal(a[name], b[name]), name


@pytest.mark.slow
def test_fine_tuning_to_some_classes_with_frozen_stages(run):
    """The example of the guide, small: the head is new, frozen stages keep their bits."""
    root, _ = run
    write_digits(root / "five")
    for split in ("train", "validation"):
        for digit in range(5):
            shutil.rmtree(root / "five" / split / str(digit))
    frozen = ("stem", "stages.0", "stages.1", "downsamples.0", "downsamples.1")
    output = _train(
        root / "tuned",
        root / "data",
        data__train=f"folder:{root}/five/train",
        data__validation=f"folder:{root}/five/validation",
        model__num_classes=5,
        finetune__weights=str(root / "first"),
        finetune__frozen=frozen,
    )
    assert "New, with initial values (2): head.bias, head.kernel." in output
    before = load_trained(root / "first")
    after = [load_trained(root / "tuned", ema=average) for average in (False, True)]
    assert after[0].class_names == ("5", "6", "7", "8", "9")
    for tuned in after:
        for a, b in zip(arrays_of(before.model), arrays_of(tuned.model), strict=True):
            for name in a:
                if not name.startswith("head."):
                    same = np.array_equal(a[name], b[name])
                    assert same == name.startswith(frozen), name


@pytest.mark.slow
def test_digits_are_learnt(tmp_path):
    """The quickstart's promise: 98.5 % of the held-out digits."""
    command = ["train.py", "--config=configs/digits.py", f"--workdir={tmp_path}/run"]
    _output(*command, f"--config.data.data_dir={tmp_path}")
    measured = _evaluate(f"--weights={tmp_path}/run")
    assert measured["images"] == 359
    assert measured["top1"] >= 0.985
