"""The published table, measured: cells, marks, and what could not be measured."""

import json

import pytest

from fastervit_jax.evaluation.benchmarks import PUBLISHED
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.evaluation.table import Cell, Table, evaluate_all
from fastervit_jax.weights.loading import save_model
from tests.small.task import small_task


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Weights of two networks, one of them damaged, and photographs of ImageNet's classes."""
    root = tmp_path_factory.mktemp("table")
    model, folder = small_task(root / "val", 40, imagenet_1k())
    save_model(model, root / "weights" / "faster_vit_0_224")
    save_model(model, root / "weights" / "damaged")
    arrays = root / "weights" / "damaged" / "weights.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-5000])
    return root / "weights", f"imagenet:folder:{folder}"


def test_table(converted):
    weights, spec = converted
    table = evaluate_all(str(weights), [spec])
    broken, good = table.cells
    assert "damaged" in broken.problem and broken.as_json()["problem"] == broken.problem
    assert good.numbers["images"] == 40 and 0 < good.numbers["top1"] < 0.82 and good.differs
    assert good.as_json()["published_top1"] == 0.821
    text = table.markdown()
    measured = f"{100 * good.numbers['top1']:.2f} / {100 * good.numbers['top5']:.2f}"
    assert f"| `faster_vit_0_224` | **⚠ {measured} (82.1 / 95.9)** |" in text
    assert "failed" in text and len(table.problems) == 1
    json.dumps(table.as_json(), allow_nan=False)


@pytest.mark.parametrize("off, differs", [(0.0, False), (0.09, False), (0.11, True), (-0.11, True)])
def test_marks(off, differs):
    """Both accuracies of every published cell: more than 0.1 points away is marked."""
    for model, row in PUBLISHED.items():
        for benchmark, published in row.items():
            for shift1, shift5 in ((off, 0), (0, off)):
                numbers = {
                    "top1": (published.top1 + shift1) / 100,
                    "top5": (published.top5 + shift5) / 100,
                }
                cell = Cell("w", model, benchmark, benchmark, numbers)
                assert cell.differs == differs
                assert ("⚠" in Table([cell], {}).markdown()) == differs


def test_refusals(converted, tmp_path):
    weights, spec = converted
    with pytest.raises(ValueError, match="contains no converted weights"):
        evaluate_all(str(tmp_path), [spec])
    with pytest.raises(ValueError, match="expected BENCHMARK or BENCHMARK:folder:/x"):
        evaluate_all(str(weights), ["folder:/x"])
    with pytest.raises(ValueError, match="Folder not found"):
        evaluate_all(str(weights), ["imagenet:folder:/missing"])
    with pytest.raises(ValueError, match="No benchmark can be read"):
        evaluate_all(str(weights), data_dir=str(tmp_path))
