"""Runs of train.py and eval.py that detect: a short one, one that is killed, the whole example."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.detection.evaluation import NUMBERS
from fastervit_jax.training.reporting import read_metrics
from tests.parallel.hosts import evaluate, start
from tests.small import detection_run, killed_run
from tests.small.run import ROOT


def _train(root, name, **changes) -> str:
    done = subprocess.run(
        detection_run.command(root / name, root / "data", **changes),
        cwd=ROOT,
        env=detection_run.environment(root / "cache"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory with images (`data`), compiled programs (`cache`) and a run (`whole`)."""
    root = tmp_path_factory.mktemp("detection")
    detection_run.write_images(root / "data")
    _train(root, "whole")
    return root


def test_a_short_run(whole):
    """Losses fall; the evaluation has pycocotools' twelve numbers; pictures are drawn.

    In the first steps the selected proposals change, and with them the losses of boxes. Those of
    the classes and of the denoising queries, whose boxes are given, fall from the start.
    """
    records = read_metrics(whole / "whole")
    steps = [record for record in records if "loss" in record]
    assert len(steps) == detection_run.STEPS
    assert all(np.isfinite(record["loss"]) for record in steps)
    for name, share in (("class", 0.7), ("denoising", 0.9)):
        values = [record[name] for record in steps]
        assert np.mean(values[-5:]) < share * np.mean(values[:5]), name
    evaluated = [record for record in records if "validation_AP" in record]
    assert evaluated
    for record in evaluated:
        numbers = [record[f"validation_{name}"] for name in NUMBERS]
        assert all(-1 <= number <= 1 for number in numbers)
        assert record["validation_AR100"] >= record["validation_AR1"]
    for picture in ("curves.png", "predictions.png"):
        assert np.asarray(Image.open(whole / "whole" / picture).convert("L")).std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [5, 14])
def test_a_killed_run_ends_as_the_uninterrupted_one(whole, kill_after):
    """Killed after a step and started again: the same state to the bit, each record once."""
    workdir = whole / f"killed_{kill_after}"
    changes = {"checkpoint__every_steps": 2}
    if not (whole / "saved_often").exists():
        _train(whole, "saved_often", **changes)
    process = subprocess.Popen(
        detection_run.command(workdir, whole / "data", **changes),
        cwd=ROOT,
        env=detection_run.environment(whole / "cache"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None:
        saved = any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))
        if saved and f'"step": {kill_after}' in metrics.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    output = _train(whole, workdir.name, **changes)
    assert "Resuming from step" in output
    assert not killed_run.differences(workdir, whole / "saved_often", detection_run.STEPS)


@pytest.mark.slow
def test_two_hosts_train_and_evaluate_as_one(whole):
    """Losses of one host with two devices and of two hosts; then both evaluate one network."""
    losses = {}
    for hosts in (1, 2):
        workdir = whole / f"hosts_{hosts}"
        flags = detection_run.command(workdir, whole / "data", total_steps=4)[2:]
        for code, _, errors in start(hosts, flags, devices=2 // hosts):
            assert code == 0, errors
        losses[hosts] = [record["loss"] for record in read_metrics(workdir) if "loss" in record]
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    flags = [f"--weights={whole / 'whole'}", "--batch_size=8"]
    numbers = {hosts: evaluate(hosts, flags) for hosts in (1, 2)}
    assert numbers[1]["images"] == 8
    assert numbers[2] == {
        key: pytest.approx(value, abs=1e-3) if isinstance(value, float) else value
        for key, value in numbers[1].items()
    }


@pytest.mark.slow
def test_the_example_finds_digits(tmp_path):
    """`make detect`, whole: AP50 of 0.85 or more on held-out images."""
    pytest.importorskip("skimage")
    flags = ["--config=configs/detect_digits.py", f"--workdir={tmp_path}/run"]
    flags.append(f"--config.data.data_dir={tmp_path}/data")
    subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, check=True)
    command = ["eval.py", f"--weights={tmp_path}/run", "--batch_size=16"]
    command += [f"--report={tmp_path}/report", f"--data_dir={tmp_path}/data"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["images"] == 150
    assert result["AP50"] >= 0.85
    assert (tmp_path / "report" / "report.html").exists()
