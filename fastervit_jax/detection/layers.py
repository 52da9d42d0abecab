"""Layers of the detector, with the initial weights of the official one."""

import math
from typing import Any

import jax
from flax import nnx

from fastervit_jax.models.layers import (
    Linear,
    constant,
    fan_in_uniform,
    full_precision,
    normal,
    zeros,
)


def xavier_linear(in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs) -> Linear:
    """A linear layer: weights uniform within √(6 / (inputs + outputs)), bias zero."""
    weights = fan_in_uniform(fan_in=(in_features + out_features) / 6)
    return _linear(in_features, out_features, weights, zeros, dtype=dtype, rngs=rngs)


def feedforward_linear(in_features: int, out_features: int, *, dtype, rngs: nnx.Rngs) -> Linear:
    """As `xavier_linear`, but with torch's own bias: uniform within 1/√inputs."""
    weights = fan_in_uniform(fan_in=(in_features + out_features) / 6)
    bias = fan_in_uniform(fan_in=in_features)
    return _linear(in_features, out_features, weights, bias, dtype=dtype, rngs=rngs)


def torch_linear(
    in_features: int, out_features: int, *, bias: Any = None, dtype, rngs: nnx.Rngs
) -> Linear:
    """A linear layer with torch's weights, uniform within 1/√inputs; `bias` makes its bias."""
    uniform = fan_in_uniform(fan_in=in_features)
    return _linear(in_features, out_features, uniform, bias or uniform, dtype=dtype, rngs=rngs)


def zero_linear(
    in_features: int, out_features: int, *, bias: Any = zeros, dtype, rngs: nnx.Rngs
) -> Linear:
    """A linear layer whose weights are zero; `bias` initializes its bias."""
    return _linear(in_features, out_features, zeros, bias, dtype=dtype, rngs=rngs)


def _linear(in_features, out_features, kernel_init, bias_init, *, dtype, rngs) -> Linear:
    return Linear(
        in_features,
        out_features,
        kernel_init=kernel_init,
        bias_init=bias_init,
        dtype=dtype,
        rngs=rngs,
    )


class Embedding(nnx.Module):
    """Learned vectors [count, features], normally distributed at first.

    Attributes:
        embedding: the vectors.
    """

    def __init__(self, count: int, features: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(normal(1.0)(rngs.params(), (count, features)))


class BoxHead(nnx.Module):
    """Three linear layers with ReLUs between them, to four numbers, which are zero at first."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        options = dict(dtype=dtype, rngs=rngs)
        last = zero_linear(width, 4, dtype=full_precision(dtype), rngs=rngs)
        hidden = [torch_linear(width, width, **options) for _ in range(2)]
        self.layers = nnx.List([*hidden, last])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [..., C] → changes of the logits of boxes, float32 [..., 4]."""
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class ClassHead(Linear):
    """A linear layer to float32 logits of classes; its first bias makes each class 1 % likely."""

    def __init__(self, width: int, num_classes: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(
            width,
            num_classes,
            kernel_init=fan_in_uniform(fan_in=width),
            bias_init=constant(-math.log(99)),
            dtype=full_precision(dtype),
            rngs=rngs,
        )


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU, added to x, then a layer norm: [N, T, C] → same."""

    def __init__(self, width: int, hidden: int, *, norm: Any, dtype, rngs: nnx.Rngs):
        self.expand = feedforward_linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = feedforward_linear(hidden, width, dtype=dtype, rngs=rngs)
        self.norm = norm

    @jax.named_scope("feedforward")
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x + self.contract(jax.nn.relu(self.expand(x))))
