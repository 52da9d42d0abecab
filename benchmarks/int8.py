"""int8: an exported network quantized by the runtimes' own tools, and what that costs on digits.

    python benchmarks/int8.py --weights=runs/digits

exports the network of `make quickstart` to ONNX, quantizes it with 256 of its training images, and
compares it with float32 on the held-out digits. `benchmarks/serving.py` times such networks. Needs
`fastervit-jax[onnx]`, openvino, nncf and scikit-learn; no torch.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import harness
import numpy as np

Logits = Callable[[np.ndarray], np.ndarray]


def in_onnxruntime(path: Path) -> Logits:
    """An ONNX file in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def in_openvino(path: Path) -> Logits:
    """An ONNX file or an OpenVINO model in OpenVINO, on one thread, in float32.

    OpenVINO computes in bfloat16 where the processor can, unless it is told otherwise.
    """
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda images: np.array(model({"images": images})[0])


def quantize_onnxruntime(path: Path, images: np.ndarray, output: Path) -> None:
    """Writes an int8 version of an ONNX file, by onnxruntime's own quantizer.

    Args:
        path: the ONNX file.
        images: images like those to serve, from which the ranges of activations are measured.
        output: the ONNX file to write.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter(images)

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"images": image[None]}

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(output),
        Images(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        extra_options={"MatMulConstBOnly": True, "QDQDisableWeightAdjustForInt32Bias": True},
    )
    prepared.unlink()


def quantize_openvino(path: Path, images: np.ndarray, output: Path) -> None:
    """Writes an int8 version of an ONNX file as an OpenVINO model, by NNCF.

    Args:
        path: the ONNX file.
        images: images like those to serve, from which the ranges of activations are measured.
        output: the OpenVINO model to write, an .xml file.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(str(path))
    examples = nncf.Dataset([image[None] for image in images])
    # Without model_type=TRANSFORMER, which destroys this network (NOTES.md).
    quantized = nncf.quantize(model, examples, subset_size=len(images))
    openvino.save_model(quantized, str(output), compress_to_fp16=False)


def agreement(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Share of images with the same best class, and the relative error of logits (by norms)."""
    same = float(np.mean(found.argmax(-1) == expected.argmax(-1)))
    return same, float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def digits(split: str, model) -> tuple[np.ndarray, np.ndarray]:
    """Normalized images of the digits as a network takes them, and their labels."""
    from fastervit_jax.data import EvalTransform, eval_batches, open_source
    from fastervit_jax.data.preprocessing import normalize

    own = model.preprocessing
    source = open_source(f"digits:{split}")
    transform = EvalTransform(model.config.resolution, 1.0, own.crop_mode)
    (batch,) = eval_batches(source, transform, batch_size=len(source))
    return np.asarray(normalize(batch["image"], own.mean, own.std)), batch["label"]


def main() -> None:
    """Measures, prints, and writes benchmarks/results/int8_digits.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="work directory of the quickstart")
    parser.add_argument("--examples", type=int, default=256, help="images to quantize with")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "int8_digits.json")
    arguments = parser.parse_args()

    from fastervit_jax import create_model
    from fastervit_jax.commands.export import export_model

    model = create_model("faster_vit_0_224", weights=arguments.weights)
    examples, _ = digits("train", model)
    chosen = np.random.default_rng(0).permutation(len(examples))[: arguments.examples]
    images, labels = digits("validation", model)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        export_model(model, folder / "exported", format="onnx")
        path = folder / "exported" / "model.onnx"
        quantize_onnxruntime(path, examples[chosen], folder / "int8.onnx")
        quantize_openvino(path, examples[chosen], folder / "int8.xml")
        float32 = in_onnxruntime(path)(images)
        found = {
            "float32": float32,
            "onnxruntime": in_onnxruntime(folder / "int8.onnx")(images),
            "openvino": in_openvino(folder / "int8.xml")(images),
        }
    rows = []
    for name, logits in found.items():
        same, error = agreement(logits, float32)
        right = int(np.sum(logits.argmax(-1) == labels))
        rows.append({"network": name, "right": right, "same_class": same, "error": error})
        print(rows[-1])
    names = ("onnxruntime", "openvino", "nncf", "jax2onnx")
    content = {
        "date": date.today().isoformat(),
        "versions": {name: harness.version(name) for name in names},
        "commit": harness.commit(),
        "images": len(images),
        "examples": arguments.examples,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
