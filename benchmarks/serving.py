"""Serving FasterViT on a CPU: JAX, torch, and ONNX in onnxruntime and OpenVINO.

    python benchmarks/serving.py --models 0 --batches 1 8

Candidates take turns on the same images and weights. `eager` is the official network in PyTorch,
`ours_deployed` is `model.deploy()` in JAX. The other rows are ONNX files: `torch` by
`torch.onnx.export` of the official network, `ours` by `fastervit export --format=onnx`, `int8` the
latter after quantization by the runtime's own tool (`int8.py`).
Processor time counts. Needs `fastervit-jax[onnx]`, openvino and nncf, beside torch and the official
package.
"""

import tempfile
from pathlib import Path

import harness
import numpy as np
from int8 import (
    Logits,
    agreement,
    in_onnxruntime,
    in_openvino,
    quantize_onnxruntime,
    quantize_openvino,
)


def candidates(number: int, folder: Path, *, examples: int) -> dict[str, tuple[Logits, bool]]:
    """What is timed, by name: a function of images, and whether they are [N, 3, H, W]."""
    import jax
    import networks
    import torch

    from fastervit_jax.commands.export import export_model

    name = networks.name_of(number)
    theirs = networks.official(name, "cpu")
    with torch.no_grad():
        # Initial biases are zero, and an exporter may drop what adds zeros.
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    deployed = networks.ours(name, theirs, dtype="float32").deploy()
    export_model(deployed, folder / "ours", format="onnx")
    few = networks.images_of(2, deployed.config.resolution)
    exported = networks.deployed_official(theirs, networks.to_torch(few, "cpu"))
    torch.onnx.export(
        exported.to(memory_format=torch.contiguous_format),
        (networks.to_torch(few, "cpu").contiguous(),),
        folder / "torch.onnx",
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
    )
    ours = folder / "ours" / "model.onnx"
    calibration = networks.images_of(examples, deployed.config.resolution)
    quantize_onnxruntime(ours, calibration, folder / "int8.onnx")
    quantize_openvino(ours, calibration, folder / "int8.xml")

    function, arrays = networks.forward(deployed)
    compiled = jax.jit(function)

    def eager(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return theirs(torch.from_numpy(images)).numpy()

    return {
        "eager": (eager, True),
        "ours_deployed": (lambda images: np.asarray(compiled(arrays, images)), False),
        "torch_onnxruntime": (in_onnxruntime(folder / "torch.onnx"), True),
        "ours_onnxruntime": (in_onnxruntime(ours), False),
        "int8_onnxruntime": (in_onnxruntime(folder / "int8.onnx"), False),
        "torch_openvino": (in_openvino(folder / "torch.onnx"), True),
        "ours_openvino": (in_openvino(ours), False),
        "int8_openvino": (in_openvino(folder / "int8.xml"), False),
    }


def repeat(function: Logits, images: np.ndarray) -> harness.Run:
    """Calls of a function, one after the other."""

    def run(calls: int) -> None:
        for _ in range(calls):
            function(images)

    return run


def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    flags.add_argument("--examples", type=int, default=16, help="images to quantize with")
    arguments = flags.parse_args()
    device = harness.start(arguments)
    if device != "cpu":
        raise SystemExit("This benchmark is about CPUs: set JAX_PLATFORMS=cpu.")
    import networks

    record = harness.Record("serving", arguments, device)
    packages = ("onnxruntime", "openvino", "nncf", "onnx", "jax2onnx")
    record.content["versions"] |= {name: harness.version(name) for name in packages}
    for number in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            found = candidates(number, Path(folder), examples=arguments.examples)
            for batch in arguments.batches:
                images = networks.images_of(batch, (224, 224))
                # Channels last in memory is what the official network is given elsewhere, too.
                inputs = {True: np.moveaxis(images, -1, 1), False: images}
                runs, errors = {}, {}
                expected = found["eager"][0](inputs[True])
                for name, (function, channels_first) in found.items():
                    given = inputs[channels_first]
                    if channels_first and name != "eager":
                        given = np.ascontiguousarray(given)
                    errors[name] = agreement(function(given), expected)[1]
                    runs[name] = repeat(function, given)
                timings = harness.take_turns(
                    runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
                )
                record.add(
                    model=f"faster_vit_{number}_224",
                    batch=batch,
                    ms={name: 1000 * timing.counted for name, timing in timings.items()},
                    spread={name: timing.spread for name, timing in timings.items()},
                    error=errors,
                )
        harness.forget()


if __name__ == "__main__":
    main()
