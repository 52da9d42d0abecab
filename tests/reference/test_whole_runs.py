"""Whole runs beside the official recipe: a short form, and what the long form's record says."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tests.reference.whole_runs import MEASURES, SIGNIFICANCE, compare
from tests.small.run import ROOT

RECORD = ROOT / "benchmarks" / "results" / "whole_runs.json"


def _runs(group: str, means: list[float], seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    values = np.asarray(means) + 0.01 * rng.standard_normal((5, len(MEASURES)))
    return [
        {"group": group, "measures": dict(zip(MEASURES, map(float, row), strict=True))}
        for row in values
    ]


def test_comparison():
    """A shift of ten standard deviations is told apart; no shift is not. Intervals are Welch's."""
    runs = _runs("a, official", [1.0] * 6, 0) + _runs("a, ours", [1.0] * 6, 1)
    runs += _runs("a, mistake", [1.0, 1.0, 1.1, 1.0, 1.0, 1.0], 2)
    same, mistake = compare(runs)
    assert (same["side"], same["told_apart"]) == ("ours", [])
    assert mistake["told_apart"] == ["loss, EMA"]
    here, there = (
        np.asarray([run["measures"]["loss, EMA"] for run in runs if run["group"] == f"a, {side}"])
        for side in ("mistake", "official")
    )
    squares = [each.var(ddof=1) / len(each) for each in (here, there)]
    freedom = sum(squares) ** 2 / sum(square**2 / 4 for square in squares)
    margin = stats.t.ppf(0.975, freedom) * sum(squares) ** 0.5
    middle = here.mean() - there.mean()
    expected = [middle - margin, middle + margin]
    np.testing.assert_allclose(mistake["measures"]["loss, EMA"]["interval"], expected, rtol=1e-9)


def test_the_record():
    """Its comparisons are those of its runs: five seeds of each recipe and side."""
    record = json.loads(RECORD.read_text())
    again = compare(record["runs"])
    assert [row["told_apart"] for row in again] == [row["told_apart"] for row in record["compared"]]
    for ours, stored in zip(again, record["compared"], strict=True):
        for measure, values in ours["measures"].items():
            for name, value in values.items():
                np.testing.assert_allclose(value, stored["measures"][measure][name], rtol=1e-6)
    assert {(row["recipe"], row["side"]) for row in again} == {
        *((recipe, "ours") for recipe in ("adamw", "lamb", "fine-tuning")),
        ("adamw", "without MESA"),
        ("adamw", "drop path by image"),
    }
    assert all(row["seeds"] >= 5 for row in again)
    assert SIGNIFICANCE == 0.05


@pytest.mark.slow
def test_short_form(tmp_path):
    """Two epochs, two seeds: the mean loss of the last epoch differs by less than its noise."""
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "tests.reference.whole_runs", f"--workdir={tmp_path}"]
    command += [f"--record={record}", "--recipes=adamw", "--epochs=2", "--seeds=2", "--no_planted"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curves = {}
    for run in json.loads(record.read_text())["runs"]:
        curves.setdefault(run["group"], []).append(run["curve"])
    ours, theirs = (np.mean(curves[f"adamw, {side}"], axis=0) for side in ("ours", "official"))
    assert len(ours) == len(theirs) == 2
    assert ours[1] < ours[0] - 0.02
    # Seeds of one side differ by up to 0.044 in these epochs of the long form.
    np.testing.assert_allclose(ours, theirs, atol=0.06)
