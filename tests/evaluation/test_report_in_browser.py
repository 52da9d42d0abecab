"""The report in a real browser: what it shows, that it asks nobody for anything, and a picture."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.evaluation.report import write_report
from fastervit_jax.evaluation.run import evaluate_set, evaluate_weights
from fastervit_jax.weights.directory import WeightsInfo
from tests.evaluation.browser import browser, installed
from tests.small.task import NAME, small_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not installed(), reason="needs chromium and chromium-driver (apt-get)"),
]

BROKEN_PICTURES = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
REQUESTS = """
return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))
"""
TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """
return [...document.querySelectorAll('section *, .tile *')].filter(e => {
  const own = e.getBoundingClientRect();
  const box = e.closest('section, .tile').getBoundingClientRect();
  return own.width && (own.left < box.left - 1 || own.right > box.right + 1);
}).map(e => e.tagName + ' ' + e.textContent.slice(0, 40));
"""


def look_at(result, tmp_path, name) -> None:
    evaluation = result.evaluation
    report = write_report(result, tmp_path / name)
    # PICTURES=DIR keeps the pictures.
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with browser() as page:
        page.open(report)
        text = page.run("return document.body.innerText")
        for expected in (
            f"{evaluation.top1:.2%}",
            f"{evaluation.top5:.2%}",
            f"{evaluation.loss:.4f}",
            f"{evaluation.images:,}",
            result.evaluation_set.title,
        ):
            assert expected in text, expected
        assert page.run(BROKEN_PICTURES) == 0
        wrong = int((~evaluation.predictions.hit[:, 0]).sum())
        assert page.run("return document.querySelectorAll('figure img').length") == min(wrong, 24)
        assert page.run("return document.querySelectorAll('#calibration svg .bars rect').length")
        assert page.run(REQUESTS) == []
        page.screenshot(pictures / f"{name}.png", width=1200)
        assert page.run(TOO_WIDE) <= 0
        assert page.run(OUTSIDE) == []
        page.screenshot(pictures / f"{name}_narrow.png", width=520)
        assert page.run(TOO_WIDE) <= 0
        assert page.run(OUTSIDE) == []
        for picture in (f"{name}.png", f"{name}_narrow.png"):
            pixels = np.asarray(Image.open(pictures / picture).convert("RGB"))
            # Blue and red of the charts are there, in pixels.
            for color in ((47, 111, 178), (196, 71, 47)):
                assert (np.abs(pixels.astype(int) - color).max(axis=-1) < 8).sum() > 300
        return page.run("return document.querySelector('#classes').innerText")


def test_a_dozen_classes(small, tmp_path):
    result = evaluate_weights(str(small.weights), small.spec)
    classes = look_at(result, tmp_path, "report_dozen")
    for name in {small.source.class_names[label] for label in result.evaluation.predictions.label}:
        assert name in classes


def test_a_thousand_classes_with_published_numbers(tmp_path):
    model, folder = small_task(tmp_path / "val", 400, imagenet_1k())
    task = open_evaluation_set(f"imagenet:folder:{folder}", model_classes=None, num_logits=1000)
    info = WeightsInfo(NAME, {}, model.preprocessing)
    result = evaluate_set(model, info, task, weights="weights/faster_vit_0_224")
    classes = look_at(result, tmp_path, "report_imagenet")
    assert "worst" in classes and "best" in classes
