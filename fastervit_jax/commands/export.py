"""Exports a network for inference in other runtimes, with any batch size.

    fastervit export --model=NAME --weights=PATH --format=stablehlo --output=DIR

Each format is a directory with a `model.json`, which describes the input images and the classes:

- `stablehlo`: `program.stablehlo`, written by `jax.export` for CPU, CUDA and TPU, and its
  `weights.npz`. Runs in any process with JAX and flatbuffers, without this package.
- `onnx`: `model.onnx`, converted by jax2onnx (`onnx_graph.py`); runs in onnxruntime, OpenVINO and
  others. Weights of more than 2 GB stand in a second file, `model.onnx.data`.
- `saved_model`: a TensorFlow SavedModel, converted by JAX's own jax2tf.

The network is deployed first (`model.deploy()`). The written program is read back, run and compared
with the model before it is moved to the output directory.
"""

import contextlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from fastervit_jax.commands.flags import define_weights_flags
from fastervit_jax.commands.onnx_graph import write_onnx
from fastervit_jax.models import FasterViT
from fastervit_jax.models.layouts import without_kernels
from fastervit_jax.prediction import class_names

TOLERANCE = 1e-4
"""Largest accepted difference from the model's logits, relative to the largest logit."""

Weights = list[jax.Array]
Function = Callable[[Weights, jax.Array], jax.Array]
Run = Callable[[np.ndarray], np.ndarray]


def export_model(model: FasterViT, output: str | Path, *, format: str) -> float:
    """Exports a model to a directory.

    Args:
        model: any; it is deployed first if it is not deployed.
        output: the directory to write. It is written as a whole or not at all.
        format: "stablehlo", "onnx" or "saved_model".

    Returns:
        The largest difference between the logits of the written program and of the model, relative
        to the largest logit.

    Raises:
        ValueError: the format is unknown, or the program's logits differ from the model's.
        ImportError: a library of the format is missing; the message says what to install.
        FileExistsError: `output` exists.
    """
    if format not in _WRITERS:
        raise ValueError(f"Invalid format {format!r}: expected one of {', '.join(_WRITERS)}.")
    write, libraries, extra = _WRITERS[format]
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        raise ImportError(
            f"Missing {' and '.join(missing)}, which --format={format} needs: pip install {extra}"
        )
    _check_absent(Path(output))
    model = nnx.clone(model, variables=False) if model.deployed else model.deploy()
    shape = (*model.config.resolution, model.config.in_chans)
    images = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    function, weights = _pure(model)
    expected = np.asarray(jax.jit(function)(weights, images))
    with _new_directory(Path(output)) as directory:
        run = write(function, weights, shape, directory)
        difference = max(
            float(np.abs(run(images[:count]) - expected[:count]).max() / np.abs(expected).max())
            for count in (1, 2)
        )
        if not difference < TOLERANCE:
            raise ValueError(
                f"Failed export: the logits of the {format} program differ from the model's by "
                f"{difference:.1e} of the largest logit. Nothing was written."
            )
        description = json.dumps(_description(model, format, shape), indent=1)
        (directory / "model.json").write_text(description + "\n")
    return difference


def _pure(model: FasterViT) -> tuple[Function, Weights]:
    """The model as a function of a list of arrays and images; and these arrays."""
    graph, state = nnx.split(model)
    weights, structure = jax.tree.flatten(state)

    def function(weights: Weights, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, weights))(images)

    return function, weights


def _write_stablehlo(
    function: Function, weights: Weights, shape: tuple[int, ...], directory: Path
) -> Run:
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    with without_kernels():
        program = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(
            [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in weights],
            jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
        )
    (directory / "program.stablehlo").write_bytes(program.serialize())
    width = len(str(len(weights)))
    arrays: dict[str, Any] = {
        f"{number:0{width}}": np.asarray(array) for number, array in enumerate(weights)
    }
    np.savez(directory / "weights.npz", **arrays)

    read = export.deserialize(bytearray((directory / "program.stablehlo").read_bytes()))
    with np.load(directory / "weights.npz") as file:
        stored = [file[name] for name in file.files]
    return lambda images: np.asarray(read.call(stored, images))


def _write_onnx(
    function: Function, weights: Weights, shape: tuple[int, ...], directory: Path
) -> Run:
    import onnxruntime

    path = directory / "model.onnx"
    size = sum(array.nbytes for array in weights)
    write_onnx(lambda images: function(weights, images), shape, size, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def _write_saved_model(
    function: Function, weights: Weights, shape: tuple[int, ...], directory: Path
) -> Run:
    import tensorflow as tf
    from jax.experimental import jax2tf

    height, width, channels = shape
    converted = jax2tf.convert(
        function,
        polymorphic_shapes=[None, f"(batch, {height}, {width}, {channels})"],
        with_gradient=False,
    )
    module = tf.Module()
    module.weights = [tf.Variable(np.asarray(array), trainable=False) for array in weights]
    module.serve = tf.function(
        lambda images: {"logits": converted(list(module.weights), images)},
        autograph=False,
        input_signature=[tf.TensorSpec([None, *shape], tf.float32, name="images")],
    )
    tf.saved_model.save(module, str(directory), signatures=module.serve)
    loaded = tf.saved_model.load(str(directory)).signatures["serving_default"]
    return lambda images: loaded(images=tf.constant(images))["logits"].numpy()


_WRITERS: dict[str, tuple[Callable[..., Run], tuple[str, ...], str]] = {
    "stablehlo": (_write_stablehlo, ("flatbuffers",), "'fastervit-jax[export]'"),
    "onnx": (_write_onnx, ("jax2onnx", "onnxruntime"), "'fastervit-jax[onnx]'"),
    "saved_model": (_write_saved_model, ("tensorflow",), "tensorflow"),
}
"""For each format: the writer, the libraries that it needs, and what to install."""


def _description(model: FasterViT, format: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The content of `model.json`."""
    preprocessing = getattr(model, "preprocessing", None)
    description: dict[str, Any] = {
        "model": getattr(model, "name", None),
        "format": format,
        "images": {"shape": ["batch", *shape], "dtype": "float32"},
    }
    if preprocessing is not None and shape[-1] == len(preprocessing.mean):
        description["images"] |= {
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "crop_mode": preprocessing.crop_mode,
            "crop_fraction": preprocessing.crop_fraction,
        }
    if model.head is not None:
        description["class_names"] = list(class_names(model))
    return description


def _check_absent(output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise FileExistsError(f"Invalid output {output}: it exists. Choose another directory.")


@contextlib.contextmanager
def _new_directory(output: Path) -> Iterator[Path]:
    """A temporary directory, which is moved to `output` when the block ends without an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield beside
        beside.chmod(0o755)
        beside.replace(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit export`, and returns what runs it."""
    open_model = define_weights_flags()
    format = flags.DEFINE_enum("format", "stablehlo", list(_WRITERS), "Format to write.")
    output = flags.DEFINE_string("output", None, "Directory to write.", required=True)

    def main(_) -> None:
        difference = export_model(open_model(), output.value, format=format.value)
        for path in sorted(path for path in Path(output.value).rglob("*") if path.is_file()):
            print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
        print(f"Read back and run: the logits differ by {difference:.1e} of the largest logit.")

    return main
