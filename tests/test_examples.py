"""The notebooks of examples/ run from the first cell to the last."""

import importlib.util
import os
from pathlib import Path

import pytest

from fastervit_jax import save_model
from tests.small.network import small_model

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def _run(name: str, directory: Path, monkeypatch, **variables: str) -> str:
    """Executes a notebook in a directory; what its cells printed."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    for key, value in {"MPLBACKEND": "agg", **variables}.items():
        monkeypatch.setenv(key, value)
    root = str(EXAMPLES.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept"
    resources = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return "".join(output.get("text", "") for output in outputs)


def test_every_notebook_has_a_test():
    assert NOTEBOOKS == ["classify_and_look_at_attention.ipynb", "fine_tune_on_your_folder.ipynb"]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("skimage"), reason="needs scikit-image")
def test_classify_and_look_at_attention(tmp_path, monkeypatch):
    from fastervit_jax.weights.loading import describe

    model = small_model("faster_vit_0_224")
    describe(model, "faster_vit_0_224")
    save_model(model, tmp_path / "weights")
    printed = _run(NOTEBOOKS[0], tmp_path, monkeypatch, FASTERVIT_WEIGHTS=str(tmp_path / "weights"))
    assert "stage 3, layer 1: windows (2, 2, 8, 20, 20), carriers (8, 4, 4, 4, 4)" in printed
    assert (tmp_path / "carriers.png").exists() and (tmp_path / "window.png").exists()


@pytest.mark.slow
def test_fine_tune_on_your_folder(tmp_path, monkeypatch):
    printed = _run(NOTEBOOKS[1], tmp_path, monkeypatch, QUICK="1")
    assert "359 held-out images, top-1" in printed
    assert (tmp_path / "runs/my_folder/checkpoints").is_dir()
