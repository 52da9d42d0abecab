"""Networks for other runtimes: written by the command, run where this package is absent."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
from flax import nnx

import fastervit_jax.commands.export
from fastervit_jax import save_model
from fastervit_jax.commands.export import export_model
from fastervit_jax.weights.loading import describe
from tests.small.network import small_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    model = small_model("faster_vit_3_224")
    describe(model, "faster_vit_3_224")
    model.class_names = tuple(f"kind {number}" for number in range(10))
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model as a directory, and five images with their logits."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(model, folder / "weights")
    images = np.random.default_rng(1).standard_normal((5, 128, 128, 3)).astype(np.float32)
    logits = nnx.jit(lambda model, images: model(images))(model, images)
    np.savez(folder / "expected.npz", images=images, logits=logits)
    return folder


def run(*arguments, python: Path | str = sys.executable) -> str:
    result = subprocess.run(
        [str(python), *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# Written by hand into docs/guides/export.md as well.
LOAD_STABLEHLO = """
import sys
import jax
import numpy as np
from jax import export

folder, expected = sys.argv[1], np.load(sys.argv[2])
with open(f"{folder}/program.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
stored = np.load(f"{folder}/weights.npz")
weights = [stored[name] for name in stored.files]

assert not {"flax", "fastervit_jax"} & set(sys.modules)
for count in (1, 2, 5):
    logits = jax.jit(program.call)(weights, expected["images"][:count])
    print(np.abs(logits - expected["logits"][:count]).max() / np.abs(expected["logits"]).max())
"""


def test_stablehlo(model, saved, tmp_path):
    output = tmp_path / "exported"
    report = run(
        *("-m", "fastervit_jax", "export", "--format=stablehlo"),
        *(f"--weights={saved / 'weights'}", f"--output={output}"),
    )
    assert "logits differ by" in report and str(output / "program.stablehlo") in report
    differences = run("-c", LOAD_STABLEHLO, output, saved / "expected.npz").split()
    assert len(differences) == 3
    assert all(float(difference) < 1e-5 for difference in differences)

    # Not laid out for this machine's processor, which has a sum in place of this convolution.
    program = jax.export.deserialize(bytearray((output / "program.stablehlo").read_bytes()))
    assert f"feature_group_count = {model.config.widths[2]} " in program.mlir_module()

    description = json.loads((output / "model.json").read_text())
    assert description["model"] == "faster_vit_3_224"
    assert description["images"]["shape"] == ["batch", 128, 128, 3]
    assert description["images"]["mean"] == [0.485, 0.456, 0.406]
    assert description["class_names"][9] == "kind 9"


@pytest.mark.slow
def test_onnx_in_an_environment_of_its_own(saved, tmp_path):
    """jax2onnx asks for an Orbax that is older than the newest; hence not beside the others."""
    run("-m", "venv", tmp_path / "environment")
    python = tmp_path / "environment" / "bin" / "python"
    packages = (f"jax=={jax.__version__}", f"{ROOT}[onnx]", "openvino")
    run("-m", "pip", "install", "--quiet", *packages, python=python)
    output = tmp_path / "exported"
    run(
        *("-m", "fastervit_jax", "export", "--format=onnx"),
        *(f"--weights={saved / 'weights'}", f"--output={output}"),
        python=python,
    )
    assert sorted(path.name for path in output.iterdir()) == ["model.json", "model.onnx"]
    differences = run("-c", LOAD_ONNX, output, saved / "expected.npz", python=python).split()
    assert len(differences) == 6
    assert all(float(difference) < 1e-4 for difference in differences)

    # Operators with fast kernels, and no transpositions between the convolutions of a stage.
    # Three transformer layers, two blocks of convolutions, three layers that downsample.
    counts = json.loads(run("-c", COUNT_OPERATORS, output, python=python))
    assert counts["Conv"] == 2 + 2 * 2 + 3 + 1  # stem, blocks, downsampling, carrier tokens
    assert counts["Gelu"] == 2 + 3
    assert counts["Softmax"] == 3
    assert counts["LayerNormalization"] == 2 * 3 + 3
    assert not {"Einsum", "Erf", "Exp", "Pad", "Sigmoid"} & set(counts)
    assert counts["before the first norm"] == 2


LOAD_ONNX = """
import sys
import numpy as np
import onnxruntime
import openvino

file = f"{sys.argv[1]}/model.onnx"
expected = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(file)
model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for count in (1, 2, 5):
    images = expected["images"][:count]
    for logits in session.run(["logits"], {"images": images})[0], model({"images": images})[0]:
        print(np.abs(logits - expected["logits"][:count]).max() / np.abs(expected["logits"]).max())
"""

COUNT_OPERATORS = """
import collections
import json
import sys
import onnx

nodes = onnx.load(f"{sys.argv[1]}/model.onnx").graph.node
counts = collections.Counter(node.op_type for node in nodes)
operators = [node.op_type for node in nodes]
# One transposition takes the images, one makes the input of the first layer norm.
first = operators[: operators.index("LayerNormalization")]
counts["before the first norm"] = first.count("Transpose")
print(json.dumps(counts))
"""


def test_saved_model(model, tmp_path):
    pytest.importorskip("tensorflow")
    assert export_model(model, tmp_path / "exported", format="saved_model") < 1e-4


def test_a_missing_library(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for format, extra in (("onnx", "onnx"), ("stablehlo", "export")):
        with pytest.raises(ImportError, match=rf"pip install 'fastervit-jax\[{extra}\]'"):
            export_model(model, tmp_path / "exported", format=format)
    with pytest.raises(ImportError, match="pip install tensorflow"):
        export_model(model, tmp_path / "exported", format="saved_model")


def test_an_unknown_format(model, tmp_path):
    with pytest.raises(ValueError, match="expected one of stablehlo, onnx, saved_model"):
        export_model(model, tmp_path / "exported", format="torchscript")


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "precious").write_text("")
    with pytest.raises(FileExistsError, match="Choose another directory"):
        export_model(model, tmp_path / "exported", format="stablehlo")
    assert [path.name for path in tmp_path.rglob("*")] == ["exported", "precious"]


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    model = small_model(depths=(1, 0, 0, 0))

    def wrong(function, weights, shape, directory):
        (directory / "program").write_text("")
        return lambda images: np.asarray(function(weights, images)) * 1.001

    monkeypatch.setitem(fastervit_jax.commands.export._WRITERS, "stablehlo", (wrong, (), ""))
    with pytest.raises(ValueError, match="differ from the model's by 1"):
        export_model(model, tmp_path / "exported", format="stablehlo")
    assert not list(tmp_path.iterdir())
