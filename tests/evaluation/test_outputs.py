"""What eval.py prints and writes, what it refuses, and that nothing half-written stays."""

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fastervit_jax.data import progress as bars
from fastervit_jax.evaluation import progress
from fastervit_jax.evaluation.report import report_html
from fastervit_jax.evaluation.result import check_destination, details_json, predictions_csv
from fastervit_jax.evaluation.run import EvaluationOptions, evaluate_weights
from fastervit_jax.weights.loading import save_model
from tests.data.photographs import encode, photographs
from tests.small.task import NAMES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(small):
    return evaluate_weights(str(small.weights), small.spec)


def run_eval(*flags) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "eval.py", *flags], cwd=ROOT, capture_output=True, text=True
    )


def test_command(small, result, tmp_path):
    """Standard output, and all three kinds of file."""
    ran = run_eval(
        f"--weights={small.weights}",
        f"--dataset={small.spec}",
        f"--json={tmp_path}/result.json",
        f"--predictions={tmp_path}/predictions.csv",
        f"--report={tmp_path}/report",
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    evaluation = result.evaluation
    assert (said["images"], said["top1"], said["top5"]) == (
        small.images,
        evaluation.top1,
        evaluation.top5,
    )
    assert said["loss"] == pytest.approx(evaluation.loss, abs=1e-6)
    assert said["crop_fraction"] == 0.875 and said["model"] == "faster_vit_0_224"

    details = json.loads((tmp_path / "result.json").read_text())
    assert details["top1"] == said["top1"]
    assert sum(entry["images"] for entry in details["per_class"]) == small.images
    right = sum(entry["correct"] for entry in details["per_class"])
    wrong = sum(pair["images"] for pair in details["confused_pairs"])
    assert right == round(said["top1"] * small.images) == small.images - wrong
    assert sum(entry["images"] for entry in details["calibration"]) == small.images

    report = (tmp_path / "report" / "report.html").read_text()
    assert f"{said['top1']:.2%}" in report and "http" not in report.replace("http-equiv", "")
    assert {path.name for path in tmp_path.iterdir()} == {
        "result.json",
        "predictions.csv",
        "report",
    }


def test_predictions_file(small, result):
    lines = list(csv.DictReader(predictions_csv(result).splitlines()))
    files = sorted(str(path) for path in small.folder.glob("*/*.JPEG"))
    assert [line["file"] for line in lines] == files
    assert [line["label"] for line in lines] == [Path(file).parent.name for file in files]
    right = sum(line["top1"] == line["label"] for line in lines)
    among = sum(line["label"] in [line[f"top{k}"] for k in range(1, 6)] for line in lines)
    assert right / len(lines) == result.evaluation.top1
    assert among / len(lines) == result.evaluation.top5
    for line in lines:
        shares = [float(line[f"probability{k}"]) for k in range(1, 6)]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-5
    assert np.mean([float(line["loss"]) for line in lines]) == pytest.approx(
        result.evaluation.loss, abs=1e-5
    )


def test_flags_for_crop_and_deploy(small, result):
    """The folded network agrees; another crop does not."""
    folded = evaluate_weights(
        str(small.weights), small.spec, options=EvaluationOptions(deploy=True)
    )
    assert folded.evaluation.top1 == result.evaluation.top1
    assert folded.evaluation.loss == pytest.approx(result.evaluation.loss, abs=1e-5)
    assert folded.settings()["deployed"]
    squashed = evaluate_weights(
        str(small.weights),
        small.spec,
        options=EvaluationOptions(crop_mode="squash", crop_fraction=1.0),
    )
    # The view that the photographs were filed by.
    assert squashed.evaluation.top1 == 1.0 > result.evaluation.top1
    assert "Worst mistakes" in report_html(squashed) and "No prediction was wrong." in report_html(
        squashed
    )


def test_report_escapes_names(result):
    """A class folder may be called anything."""
    evil = dataclasses.replace(
        result.evaluation_set,
        title="<script>alert(1)</script>",
        source=_Renamed(result.evaluation_set.source),
    )
    page = report_html(dataclasses.replace(result, evaluation_set=evil))
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_names_in_csv_and_json(result):
    """JSON has every name as it is; CSV too, but for what a spreadsheet would run."""
    odd = (
        "=1+1",
        "+cmd",
        "-x",
        "@sum",
        "-1",
        "+.5",
        'a, "b"',
        "<b>",
        "é 中",
        "two\nlines",
        "'",
        "k",
    )
    named = dataclasses.replace(
        result.evaluation_set, source=_Renamed(result.evaluation_set.source, odd)
    )
    changed = dataclasses.replace(result, evaluation_set=named)
    per_class = json.loads(details_json(changed))["per_class"]
    assert tuple(entry["class"] for entry in per_class) == odd
    safe = dict(zip(odd, ("'=1+1", "'+cmd", "'-x", "'@sum", *odd[4:]), strict=True))
    lines = list(csv.DictReader(io.StringIO(predictions_csv(changed), newline="")))
    labels = result.evaluation.predictions.label
    assert [line["label"] for line in lines] == [safe[odd[label]] for label in labels]
    best = result.evaluation.predictions.top[:, 0]
    assert [line["top1"] for line in lines] == [safe[odd[label]] for label in best]


def test_two_evaluations_at_once(small, result):
    def run(_):
        return evaluate_weights(str(small.weights), small.spec)

    with ThreadPoolExecutor(2) as threads:
        for other in threads.map(run, range(2)):
            assert other.evaluation.summary() == result.evaluation.summary()


class _Renamed:
    """A data set whose classes have names that would do harm in HTML, or those given."""

    def __init__(self, source, names=None):
        self._source = source
        evil = tuple(f"<img src=x onerror={name!r}>" for name in source.class_names)
        self.class_names = names or evil
        self.num_classes = source.num_classes

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]


def _broken_image(small, tmp_path):
    shutil.copytree(small.folder, tmp_path / "broken")
    first = sorted((tmp_path / "broken").glob("*/*"))[20]
    first.write_bytes(first.read_bytes()[:300])
    return dict(
        dataset=f"folder:{tmp_path / 'broken'}"
    ), f"Evaluation stopped: {first}.*cannot be decoded"


def _unknown_class(small, tmp_path):
    shutil.copytree(small.folder, tmp_path / "unknown")
    folder = tmp_path / "unknown" / "class Z"
    folder.mkdir()
    (folder / "x.png").write_bytes(encode(photographs()["coffee"], "PNG"))
    return dict(
        dataset=f"folder:{folder.parent}"
    ), "1 of the 12 classes .* not among the 12 .*'class Z'"


def _empty_folder(small, tmp_path):
    (tmp_path / "empty").mkdir()
    return dict(dataset=f"folder:{tmp_path / 'empty'}"), "No class folders in"


def _other_model(small, tmp_path):
    return dict(model_name="faster_vit_1_224"), "contains weights of faster_vit_0_224"


def _nameless_of_other_classes(small, tmp_path):
    save_model(_nameless(small.model), tmp_path / "nameless")
    folder = tmp_path / "two"
    for name in NAMES[:2]:
        (folder / name).mkdir(parents=True)
        (folder / name / "x.png").write_bytes(encode(photographs()["coffee"], "PNG"))
    return (
        dict(weights=str(tmp_path / "nameless"), dataset=f"folder:{folder}"),
        "expected 12 classes, .* got 2",
    )


def _nameless(model):
    from flax import nnx

    model = nnx.clone(model)
    model.class_names = None
    return model


def _not_finite(small, tmp_path):
    import jax.numpy as jnp
    from flax import nnx

    model = nnx.clone(small.model)
    # Finite weights whose product is not.
    model.head.kernel[...] = jnp.full_like(model.head.kernel[...], 3e38)
    save_model(model, tmp_path / "huge")
    return dict(weights=str(tmp_path / "huge")), "loss of .* of 53 images is not finite"


def _no_dataset(small, tmp_path):
    return dict(dataset=None), "Missing --dataset"


def _bad_crop(small, tmp_path):
    return dict(options=EvaluationOptions(crop_fraction=0.0)), "Invalid crop_fraction"


@pytest.mark.parametrize(
    "case",
    [
        _broken_image,
        _unknown_class,
        _empty_folder,
        _other_model,
        _nameless_of_other_classes,
        _not_finite,
        _no_dataset,
        _bad_crop,
    ],
    ids=lambda case: case.__name__.strip("_"),
)
def test_refusals(small, tmp_path, case):
    changes, message = case(small, tmp_path)
    arguments = dict(weights=str(small.weights), dataset=small.spec) | changes
    with pytest.raises((ValueError, OSError), match=message) as refusal:
        evaluate_weights(arguments.pop("weights"), arguments.pop("dataset"), **arguments)
    assert "\n" not in str(refusal.value)


def test_a_refused_command_writes_nothing(small, tmp_path):
    changes, _ = _broken_image(small, tmp_path)
    ran = run_eval(
        f"--weights={small.weights}",
        f"--dataset={changes['dataset']}",
        f"--json={tmp_path}/result.json",
        f"--predictions={tmp_path}/predictions.csv",
        f"--report={tmp_path}/report",
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr and "error: Evaluation stopped:" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_destinations_are_looked_at_first(tmp_path):
    with pytest.raises(ValueError, match=r"the directory .* does not exist"):
        check_destination("--json", tmp_path / "missing" / "x.json")
    with pytest.raises(ValueError, match="expected a file, got a directory"):
        check_destination("--json", tmp_path)
    check_destination("--json", tmp_path / "x.json")


def test_progress_in_a_log(monkeypatch, capsys):
    """Plain lines with the time left, for all hosts together."""
    clock = [100.0]
    for module in (progress, bars):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    shown = progress.EvaluationProgress(1000, hosts=2)
    for seconds in (4, 8, 4):
        clock[0] += seconds
        shown.images_done(128)
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["512 of 1000 images, 43 images/s, 11 s left"]
