"""An ONNX graph that runtimes compute fast.

Runtimes have fast kernels for operators such as Softmax, Gelu and LayerNormalization, and none for
the same arithmetic in small steps. So the network is traced with the layers below in place of its
own: the formulas are the same, in the operators of ONNX. Then onnxruntime computes what depends on
no image, and removes transpositions around convolutions. benchmarks/NOTES.md has the measurements.
"""

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fastervit_jax.models import conv_block, transformer
from fastervit_jax.models.layers import Linear, full_precision
from fastervit_jax.models.layouts import traced_for

OPSET = 20
"""The first version of ONNX with a Gelu. onnxruntime 1.32 refuses int8 networks of version 23."""

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights that fit into one ONNX file, whose format ends at 2 GiB."""


def write_onnx(
    network: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], size: int, path: Path
) -> None:
    """Writes a deployed network as an ONNX file, with any batch size.

    Args:
        network: images [N, *shape] → logits.
        shape: height, width and channels of an image.
        size: bytes of the weights. Beyond `LARGEST_FILE` they go to a second file, `PATH.data`.
        path: the file to write.
    """
    from jax2onnx import to_onnx

    # It warns about every constant without a stated type.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    one_file = size < LARGEST_FILE
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        traced = Path(directory) / path.name
        with traced_for("any"), _operators_of_onnx():  # the converter reads a traced program
            to_onnx(
                network,
                inputs=[("batch", *shape)],
                input_names=["images"],
                output_names=["logits"],
                model_name="fastervit",
                opset=OPSET,
                normalization_mode="prefer_native",
                export_mode="web" if one_file else "standard",  # "web": one file
                return_mode="file",
                output_path=str(traced),
            )
        _optimize(traced, path, one_file=one_file)


def _optimize(source: Path, target: Path, *, one_file: bool) -> None:
    """Writes the graph after onnxruntime's basic optimizations, which suit any runtime."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    if not one_file:
        data = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(data, f"{target.name}.data")
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    # onnxruntime lists all operator sets that it knows.
    model = onnx.load(str(target), load_external_data=False)
    used = {node.domain for node in model.graph.node}
    kept = [each for each in model.opset_import if each.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, str(target))


@contextlib.contextmanager
def _operators_of_onnx() -> Iterator[None]:
    """Networks that are traced in this block use the layers of `_LAYERS`."""
    with contextlib.ExitStack() as stack:
        for owner, name, layer in _LAYERS:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, layer)
        yield


def _gelu(x: jax.Array) -> jax.Array:
    """`layers.gelu` as one operator."""
    return jax.nn.gelu(x.astype(full_precision(x.dtype)), approximate=False).astype(x.dtype)


def _linear(self: Linear, x: jax.Array) -> jax.Array:
    """`Linear` as a MatMul. Other contractions become an Einsum, which is slower."""
    kernel, bias = self.arrays()
    out = jnp.matmul(x.astype(self.dtype), kernel)
    return out if bias is None else out + bias


def _attention(self: transformer.Attention, x: jax.Array, side: int, rngs=None) -> jax.Array:
    """`Attention` without dropout, with a plain Softmax."""
    del rngs
    n, tokens, width = x.shape
    wide = full_precision(self.dtype)
    bias = self.position_bias(tokens, side)
    parts = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
    q, k, v = (parts[part].astype(wide) for part in range(3))  # [N, heads, T, d] each
    weights = jax.nn.softmax(jnp.matmul(q * self.scale, k.swapaxes(2, 3)) + bias, axis=-1)
    values = jnp.matmul(weights, v).swapaxes(1, 2).reshape(n, tokens, width)
    return self.projection(values)


_LAYERS: tuple[tuple[Any, str, Callable], ...] = (
    (transformer, "mlp_gelu", _gelu),
    (conv_block, "gelu", _gelu),
    (Linear, "__call__", _linear),
    (transformer.Attention, "__call__", _attention),
)
"""What is replaced: the class or module that has it, its name, and what takes its place."""
