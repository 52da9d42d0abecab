"""What a device wants: how the operands of linear layers, attention and convolutions are arranged.

Each function computes one formula on every platform. Only the arrangement differs, which changes
the speed and the rounding of the last digit. JAX chooses when it lowers a program for a platform
(`jax.lax.platform_dependent`). So a module does not depend on the machine that built it, and an
exported program runs on any platform. benchmarks/NOTES.md has the measurements.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from fastervit_jax.models import attention_kernel

WIDE = 128
"""Channels of input and output from which a CPU has another gradient of 3×3 kernels."""

_fixed: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)
_kernels: contextvars.ContextVar[bool] = contextvars.ContextVar("kernels", default=True)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
    """Functions traced in this block take the branches of one platform: cpu, cuda or tpu; or any.

    For tools that read a traced program instead of lowering it (ONNX), and for tests.
    """
    token = _fixed.set(platform)
    try:
        yield
    finally:
        _fixed.reset(token)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Functions traced in this block are computed by XLA alone, as exported programs must be."""
    token = _kernels.set(False)
    try:
        yield
    finally:
        _kernels.reset(token)


def by_platform(*args, default: Callable, **branches: Callable):
    """Runs the branch of the platform that the program is lowered for."""
    platform = _fixed.get()
    if platform is not None:
        return branches.get(platform, default)(*args)
    return jax.lax.platform_dependent(*args, default=default, **branches)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """x · kernel + bias.

    CPU: a matrix of token rows, with a gradient of its own (`_product`). XLA for CPU transposes the
    operands of the kernel's gradient where that gradient sums over two axes. TPU: no reshape,
    because rows would be a copy there (TPUs pad the T tokens of a window).

    Args:
        x: [N, T, C].
        kernel: [C, features].
        bias: [features], or None.

    Returns:
        [N, T, features].
    """

    def rows(product):
        def run(x, kernel):
            out = product(x.reshape(-1, x.shape[-1]), kernel)
            return out.reshape(*x.shape[:-1], kernel.shape[-1])

        return run

    out = by_platform(x, kernel, cpu=rows(_product), cuda=rows(jnp.dot), default=jnp.dot)
    return out if bias is None else out + bias


@jax.custom_vjp
def _product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """rows [M, C] · kernel [C, features], for CPUs.

    XLA for CPU takes twice as long for the gradient of a kernel with more inputs than outputs as
    for the transposed gradient.
    """
    return jnp.dot(rows, kernel)


def _product_backward(saved, gradient):
    rows, kernel = saved
    if kernel.shape[0] > kernel.shape[1]:
        # The barrier keeps XLA from putting the transposition into the product.
        to_kernel = jax.lax.optimization_barrier(jnp.dot(gradient.T, rows)).T
    else:
        to_kernel = jnp.dot(rows.T, gradient)
    return jnp.dot(gradient, kernel.T), to_kernel


_product.defvjp(lambda rows, kernel: (jnp.dot(rows, kernel), (rows, kernel)), _product_backward)


def split_heads(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, heads: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of all heads, each [N, heads, T, d].

    One linear layer makes all three. TPU: one product each, with the tokens in the last axis in
    memory. TPUs store the last axis in rows of 128 numbers, which the d channels of a head would
    leave mostly empty. Elsewhere: one product, whose output is then split.

    Args:
        x: [N, T, C].
        kernel: [C, 3 · heads · d], ordered (query/key/value, head, channel).
        bias: [3 · heads · d], or None.
        heads: number of heads.
    """
    n, tokens, _ = x.shape

    def one_product(x, kernel):
        parts = linear(x, kernel, bias).reshape(n, tokens, 3, heads, -1)
        return tuple(parts[:, :, part].swapaxes(1, 2) for part in range(3))

    def tokens_last(x, kernel):
        kernels = kernel.reshape(len(kernel), 3, heads, -1)
        parts = [jnp.einsum("ntc,chd->nhdt", x, kernels[:, part]) for part in range(3)]
        if bias is not None:
            biases = bias.reshape(3, heads, -1, 1)
            parts = [out + own for out, own in zip(parts, biases, strict=True)]
        return tuple(out.swapaxes(2, 3) for out in parts)

    return by_platform(x, kernel, tpu=tokens_last, default=one_product)


def attend(
    formula: Callable,
    x: jax.Array,
    qkv: tuple[jax.Array, jax.Array | None],
    position_bias: jax.Array,
    heads: int,
    scale: float,
) -> jax.Array:
    """The values of all heads, [N, heads, T, d]: by `formula`, or on GPUs by a kernel.

    Args:
        formula: (x, qkv, position_bias) → values.
        x: [N, T, C].
        qkv: kernel and bias of the linear layer that makes queries, keys and values.
        position_bias: [heads, T, T], added to the logits.
        heads: number of heads.
        scale: what the products of queries and keys are multiplied by.
    """
    n, tokens, _ = x.shape
    channels = qkv[0].shape[1] // 3 // heads
    if not _kernels.get() or not attention_kernel.supports(tokens, channels, x.dtype):
        return formula(x, qkv, position_bias)

    def by_kernel(x, qkv, position_bias):
        parts = linear(x, *qkv).reshape(n, tokens, 3, heads, channels)
        bias = position_bias.astype(jnp.float32)
        values = attention_kernel.window_attention(parts, bias, scale)
        return values.astype(position_bias.dtype).swapaxes(1, 2)

    return by_platform(x, qkv, position_bias, cuda=by_kernel, default=formula)


def merge_heads(values: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A linear layer on the values of all heads together.

    Args:
        values: [N, heads, T, d].
        kernel: [heads · d, C].
        bias: [C], or None.

    Returns:
        [N, T, C].
    """
    n, heads, tokens, channels = values.shape

    def one_product(values, kernel):
        return linear(values.swapaxes(1, 2).reshape(n, tokens, -1), kernel, None)

    def tokens_last(values, kernel):
        return jnp.einsum("nhtd,hdc->ntc", values, kernel.reshape(heads, channels, -1))

    out = by_platform(values, kernel, tpu=tokens_last, default=one_product)
    return out if bias is None else out + bias


def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A 3×3 convolution of each channel by itself, with zeros around the map.

    CPU: the sum of nine shifted maps, because XLA for CPU has no fast kernel for such convolutions:
    fifty times as fast, the gradients eight times.

    The gradient of the kernel is nine sums on every platform. XLA's partitioner computes the
    grouped convolution that JAX would make of it wrongly on a mesh with an axis along which images
    are not split, such as `tensor`: the result is multiplied by that axis's size (JAX 0.10.2;
    tests/parallel/test_meshes.py).

    Args:
        x: [N, H, W, C].
        kernel: [3, 3, 1, C].
        bias: [C], float32 or wider.

    Returns:
        [N, H, W, C]; the CPU's sum is taken in float32 or wider.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def shifted_sum(x, kernel, bias):
        values = kernel.astype(wide).reshape(9, -1)
        taps = zip(_shifted(x.astype(wide)), values, strict=True)
        return (sum(tap * value for tap, value in taps) + bias).astype(x.dtype)

    def convolution(x, kernel, bias):
        return _grouped_convolution(x, kernel) + bias.astype(x.dtype)

    return by_platform(x, kernel, bias, cpu=shifted_sum, default=convolution)


def _plain_grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def _grouped_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _plain_grouped_convolution(x, kernel)


def _grouped_convolution_backward(saved, gradient):
    x, kernel = saved
    (to_x,) = jax.vjp(lambda x: _plain_grouped_convolution(x, kernel), x)[1](gradient)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    taps = [jnp.sum(tap * gradient, (0, 1, 2), dtype=wide) for tap in _shifted(x)]
    return to_x, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


_grouped_convolution.defvjp(
    lambda x, kernel: (_plain_grouped_convolution(x, kernel), (x, kernel)),
    _grouped_convolution_backward,
)


def convolution(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated`; on a CPU, wide 3×3 convolutions have a faster gradient.

    Not for dilated or grouped convolutions.

    XLA for CPU takes four times as long for the gradient of such a kernel as for the convolution.
    Nine matrix products take as long as the convolution. They are worth it from 128 channels.
    """

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    square = kernel.shape[:2] == (3, 3) and set(strides) == {1} and x.ndim == 4
    if not square or min(kernel.shape[2:]) < WIDE or set(padding) != {(1, 1)}:
        return plain(x, kernel)

    @jax.custom_vjp
    def wide(x, kernel):
        return plain(x, kernel)

    def backward(saved, gradient):
        x, kernel = saved
        (to_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)

        def nine_products(x, gradient):
            rows = gradient.reshape(-1, gradient.shape[-1])
            taps = [tap.reshape(-1, tap.shape[-1]).T @ rows for tap in _shifted(x)]
            return jnp.stack(taps).reshape(kernel.shape)

        def one_convolution(x, gradient):
            return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](gradient)[0]

        return to_x, by_platform(x, gradient, cpu=nine_products, default=one_convolution)

    wide.defvjp(lambda x, kernel: (plain(x, kernel), (x, kernel)), backward)
    return wide(x, kernel)


def _shifted(x: jax.Array) -> Iterator[jax.Array]:
    """What each of a 3×3 kernel's nine values, row by row, meets in maps padded by one."""
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in itertools.product(range(3), repeat=2):
        yield padded[:, i : i + rows, j : j + columns]
