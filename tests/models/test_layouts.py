"""Each platform's layout against plain NumPy in float64, and against the other platforms'."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from fastervit_jax.models import layouts, variant_config
from fastervit_jax.models.layers import DepthwiseConv3x3, conv3x3
from fastervit_jax.models.layouts import traced_for
from fastervit_jax.models.transformer import Attention, Mlp

CONFIG = variant_config("faster_vit_0_224")
WINDOWS, SIDE, IN_FRONT, WIDTH, HEADS = 3, 3, 2, 24, 4


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def _check(module: nnx.Module, run: Callable, expected: Callable, shape: tuple[int, ...]) -> None:
    """Outputs as `expected` has them, and the same gradients, on every platform.

    Args:
        module: gets random weights and biases first.
        run: (module, x) → output.
        expected: x → output, in NumPy.
        shape: of x.
    """
    random = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        variable.set_value(jnp.asarray(random.standard_normal(variable.shape) / 4))
    x = random.standard_normal(shape)

    def squares(module, x):
        out = run(module, x)
        return jnp.sum(out**2), out

    found = {}
    for platform in ("cpu", "cuda", "tpu"):
        with traced_for(platform):
            function = nnx.grad(squares, argnums=(0, 1), has_aux=True)
            gradients, out = nnx.jit(function)(module, x)
        np.testing.assert_allclose(out, expected(x), rtol=1e-10, atol=1e-10, err_msg=platform)
        found[platform] = gradients
    for platform in ("cuda", "tpu"):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9),
            found[platform],
            found["cpu"],
        )


def _linear(layer: nnx.Linear, x: np.ndarray) -> np.ndarray:
    product = x @ np.asarray(layer.kernel[...])
    return product if layer.bias is None else product + np.asarray(layer.bias[...])


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention(qkv_bias):
    config = dataclasses.replace(CONFIG, qkv_bias=qkv_bias)
    attention = Attention(config, WIDTH, HEADS, dtype=jnp.float64, rngs=nnx.Rngs(0))

    def expected(x):
        bias = np.asarray(attention.position_bias(x.shape[1], SIDE))
        out = np.empty_like(x)
        for window, tokens in enumerate(x):
            query, key, value = np.split(_linear(attention.qkv, tokens), 3, axis=-1)
            for head in range(HEADS):
                own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                logits = query[:, own] @ key[:, own].T / np.sqrt(WIDTH // HEADS) + bias[head]
                weights = np.exp(logits)
                weights /= weights.sum(axis=-1, keepdims=True)
                out[window, :, own] = weights @ value[:, own]
        return _linear(attention.projection, out)

    shape = (WINDOWS, IN_FRONT + SIDE**2, WIDTH)
    _check(attention, lambda attention, x: attention(x, SIDE), expected, shape)


def test_mlp():
    mlp = Mlp(CONFIG, WIDTH, dtype=jnp.float64, rngs=nnx.Rngs(0))

    def expected(x):
        hidden = _linear(mlp.expand, x)
        return _linear(mlp.contract, hidden * (1 + erf(hidden / np.sqrt(2))) / 2)

    _check(mlp, lambda mlp, x: mlp(x), expected, (WINDOWS, SIDE**2, WIDTH))


def test_depthwise_convolution():
    convolution = DepthwiseConv3x3(WIDTH, dtype=jnp.float64, rngs=nnx.Rngs(0))

    def expected(x):
        kernel = np.asarray(convolution.kernel[...])
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        out = np.empty_like(x)
        for row, column in np.ndindex(x.shape[1:3]):
            square = padded[:, row : row + 3, column : column + 3]
            out[:, row, column] = (square * kernel[:, :, 0]).sum(axis=(1, 2))
        return out + np.asarray(convolution.bias[...])

    _check(convolution, lambda convolution, x: convolution(x), expected, (2, 4, 5, WIDTH))


def test_depthwise_convolution_in_bfloat16_sums_in_float32():
    convolution = DepthwiseConv3x3(WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 6, WIDTH)), jnp.bfloat16)
    with traced_for("cuda"):
        other = np.asarray(convolution(x), np.float32)
    with traced_for("cpu"):
        out = convolution(x)
    assert out.dtype == jnp.bfloat16
    # The other rounds once more, before the bias.
    np.testing.assert_allclose(np.asarray(out, np.float32), other, rtol=2**-7, atol=2**-8)
    precise = nnx.clone(convolution)
    precise.dtype = jnp.float32
    kernel = convolution.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    precise.kernel = nnx.Param(kernel)
    with traced_for("cpu"):
        np.testing.assert_array_equal(out, precise(x).astype(jnp.bfloat16))


def test_wide_convolution(monkeypatch):
    """From some number of channels, the CPU has another gradient: it is the same."""
    monkeypatch.setattr(layouts, "WIDE", WIDTH)
    convolution = conv3x3(WIDTH, WIDTH + 1, dtype=jnp.float64, rngs=nnx.Rngs(0))

    def expected(x):
        kernel = np.asarray(convolution.kernel[...])
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        out = np.zeros((*x.shape[:3], WIDTH + 1))
        for row, column in np.ndindex(3, 3):
            shifted = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            out += shifted @ kernel[row, column]
        return out + np.asarray(convolution.bias[...])

    shape = (2, 4, 5, WIDTH)
    _check(convolution, lambda convolution, x: convolution(x), expected, shape)

    def convolutions(wide: int) -> int:
        monkeypatch.setattr(layouts, "WIDE", wide)
        kernels = jax.jit(nnx.grad(lambda module, x: jnp.sum(module(x) ** 2)))
        lowered = kernels.trace(convolution, jnp.zeros(shape)).lower(lowering_platforms=("cpu",))
        return lowered.as_text().count("stablehlo.convolution")

    # Forward, and the kernel's gradient only where maps are narrow.
    assert (convolutions(WIDTH + 1), convolutions(WIDTH)) == (2, 1)


def test_the_platform_is_chosen_when_a_program_is_lowered():
    """The depthwise convolution is a convolution on a TPU, and a sum on the CPU that runs this."""
    convolution = DepthwiseConv3x3(WIDTH, dtype=jnp.float32, rngs=nnx.Rngs(0))
    traced = jax.jit(convolution).trace(jnp.zeros((1, 4, 4, WIDTH), jnp.float32))
    counts = {
        platform: traced.lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.convolution")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert {name: count > 0 for name, count in counts.items()} == {
        "cpu": False,
        "cuda": True,
        "tpu": True,
    }
