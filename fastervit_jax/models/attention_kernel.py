"""Window attention for GPUs: one kernel forward, one backward (Pallas, compiled by Triton).

A window has few tokens, so its whole attention fits into the registers of one program. The logits
never reach the GPU's memory. `transformer.py` has the formula that these kernels compute; tests
compare the two. `layouts.py` chooses.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plt
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MAX_TOKENS = 64
"""The largest window that the kernels take. Beyond it the logits do not fit into registers."""

WARPS = 4
"""Groups of 32 threads of a program."""

_PROGRAMS = 2048
"""About how many programs the backward kernel has; each goes through several windows."""

_MASKED = -1e30
"""The logit of a key that is no token. Its exponential is 0."""


def supports(tokens: int, channels: int, dtype: jax.typing.DTypeLike) -> bool:
    """Whether the kernels take windows of `tokens` tokens and heads of `channels` channels."""
    return tokens <= MAX_TOKENS and channels <= 128 and jnp.finfo(dtype).bits <= 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def window_attention(
    qkv: jax.Array, bias: jax.Array, scale: float, interpret: bool = False
) -> jax.Array:
    """softmax(q·kᵀ · scale + bias) · v in each window and head.

    Products are computed in the type of `qkv` with float32 sums; logits and softmax in float32. On
    a mesh, every device computes its own windows and heads.

    Args:
        qkv: [N, T, 3, heads, d]: queries, keys and values of N windows of T tokens.
        bias: [heads, T, T], float32: added to the logit of (query, key).
        scale: what the products of queries and keys are multiplied by.
        interpret: compute on any device without compiling the kernels, for tests. Slow.

    Returns:
        [N, T, heads, d], in the type of `qkv`.
    """
    return _forward(qkv, bias, scale, interpret)


def _save(qkv, bias, scale, interpret):
    return _forward(qkv, bias, scale, interpret), (qkv, bias)


def _gradients(scale, interpret, saved, gradient):
    return _backward(*saved, gradient, scale, interpret)


window_attention.defvjp(_save, _gradients)


@functools.partial(custom_partitioning, static_argnums=(2, 3))
def _forward(qkv, bias, scale, interpret):
    n, tokens, _, heads, channels = qkv.shape
    return pl.pallas_call(
        functools.partial(_forward_kernel, tokens=tokens, channels=channels, scale=scale),
        out_shape=jax.ShapeDtypeStruct((n, tokens, heads, channels), qkv.dtype),
        grid=(n, heads),
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=WARPS, num_stages=1),
        name="window_attention",
    )(qkv, bias)


@functools.partial(custom_partitioning, static_argnums=(3, 4))
def _backward(qkv, bias, gradient, scale, interpret):
    return _local_backward(qkv, bias, gradient, scale, interpret)


def _local_backward(qkv, bias, gradient, scale, interpret):
    n, tokens, _, heads, channels = qkv.shape
    windows = max(1, n * heads // _PROGRAMS)
    chunks = pl.cdiv(n, windows)
    to_qkv, to_bias = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            count=n,
            windows=windows,
            tokens=tokens,
            channels=channels,
            scale=scale,
        ),
        out_shape=(
            jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
            jax.ShapeDtypeStruct((chunks, heads, tokens, tokens), jnp.float32),
        ),
        grid=(chunks, heads),
        interpret=interpret,
        compiler_params=None if interpret else plt.CompilerParams(num_warps=WARPS, num_stages=1),
        name="window_attention_backward",
    )(qkv, bias, gradient)
    return to_qkv, to_bias.sum(axis=0).astype(bias.dtype)


def _split(mesh: Mesh, shapes) -> tuple[tuple[NamedSharding, ...], Any]:
    """How (qkv, bias, gradient) are split over a mesh, and the axes that split the windows.

    Windows and heads stay where qkv has them. Everything else is whole on every device.
    """
    spec = (*shapes[0].sharding.spec, *[None] * 5)
    windows, heads = spec[0], spec[3]
    specs = P(windows, None, None, heads), P(heads), P(windows, None, heads)
    return tuple(NamedSharding(mesh, each) for each in specs), windows


def _partition_forward(scale, interpret, mesh, shapes, _):
    (qkv, bias, values), _ = _split(mesh, shapes)

    def local(qkv, bias):
        return _forward.fun(qkv, bias, scale, interpret)

    return mesh, local, values, (qkv, bias)


def _partition_backward(scale, interpret, mesh, shapes, _):
    (qkv, bias, values), windows = _split(mesh, shapes)

    def local(*arrays):
        to_qkv, to_bias = _local_backward(*arrays, scale, interpret)
        return to_qkv, to_bias if windows is None else jax.lax.psum(to_bias, windows)

    return mesh, local, (qkv, bias), (qkv, bias, values)


_forward.def_partition(
    _partition_forward,
    sharding_rule="n t p h d, h q k -> n t h d",
    need_replication_factors=("t", "p", "d", "q", "k"),
)
_backward.def_partition(
    _partition_backward,
    sharding_rule="n t p h d, h q k, n t h d -> n t p h d, h q k",
    need_replication_factors=("t", "p", "d", "q", "k"),
)


def _forward_kernel(qkv_ref, bias_ref, out_ref, *, tokens: int, channels: int, scale: float):
    """One window and head."""
    window, head = pl.program_id(0), pl.program_id(1)
    q, k, v = _load_qkv(qkv_ref, window, head, tokens, channels)
    exponentials, total = _softmax(q, k, _load_bias(bias_ref, head, tokens), scale)
    values = plt.dot(exponentials.astype(v.dtype), v) / total
    _store_heads(out_ref, window, head, values, tokens, channels)


def _backward_kernel(
    qkv_ref,
    bias_ref,
    gradient_ref,
    to_qkv_ref,
    to_bias_ref,
    *,
    count: int,
    windows: int,
    tokens: int,
    channels: int,
    scale: float,
):
    """Several windows of one head. The gradient of the bias is their sum."""
    chunk, head = pl.program_id(0), pl.program_id(1)
    bias = _load_bias(bias_ref, head, tokens)

    def one_window(window, to_bias):
        q, k, v = _load_qkv(qkv_ref, window, head, tokens, channels)
        gradient = _load_heads(gradient_ref, window, head, tokens, channels)
        exponentials, total = _softmax(q, k, bias, scale)
        weights = exponentials / total
        to_weights = plt.dot(gradient, v, trans_b=True)
        mean = jnp.sum(weights * to_weights, axis=-1, keepdims=True)
        to_logits = weights * (to_weights - mean)
        rounded = to_logits.astype(q.dtype)
        parts = (
            plt.dot(rounded, k) * scale,
            plt.dot(rounded, q, trans_a=True) * scale,
            plt.dot(weights.astype(v.dtype), gradient, trans_a=True),
        )
        for part, value in enumerate(parts):
            _store_heads(to_qkv_ref, window, head, value, tokens, channels, part=part)
        return to_bias + to_logits

    first = chunk * windows
    last = jnp.minimum(first + windows, count)
    to_bias = jax.lax.fori_loop(first, last, one_window, jnp.zeros_like(bias))
    rows, columns = _square(tokens)
    side = _padded(tokens)
    plt.store(
        to_bias_ref.at[chunk, head, pl.ds(0, side), pl.ds(0, side)],
        to_bias,
        mask=(rows < tokens) & (columns < tokens),
    )


def _softmax(q, k, bias, scale):
    """Exponentials of the logits, and their sums over the keys: softmax is their quotient."""
    logits = plt.dot(q, k, trans_b=True) * scale + bias
    exponentials = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials, exponentials.sum(axis=-1, keepdims=True)


def _load_bias(ref, head, tokens):
    rows, columns = _square(tokens)
    side = _padded(tokens)
    bias = plt.load(
        ref.at[head, pl.ds(0, side), pl.ds(0, side)],
        mask=(rows < tokens) & (columns < tokens),
        other=0.0,
    )
    return jnp.where(columns < tokens, bias, _MASKED)


def _load_qkv(ref, window, head, tokens, channels):
    return (_load_heads(ref, window, head, tokens, channels, part=part) for part in (0, 1, 2))


def _load_heads(ref, window, head, tokens, channels, part=None):
    at, mask = _head(window, head, tokens, channels, part)
    return plt.load(ref.at[at], mask=mask, other=0.0)


def _store_heads(ref, window, head, value, tokens, channels, part=None):
    at, mask = _head(window, head, tokens, channels, part)
    plt.store(ref.at[at], value.astype(ref.dtype), mask=mask)


def _head(window, head, tokens, channels, part):
    """Where a head's [T, d] lies, padded to what Triton computes with; and what of it exists."""
    rows, columns = pl.ds(0, _padded(tokens)), pl.ds(0, _padded(channels))
    at = (
        (window, rows, head, columns)
        if part is None
        else (window, rows, jnp.int32(part), head, columns)
    )
    exists = (jnp.arange(_padded(tokens))[:, None] < tokens) & (
        jnp.arange(_padded(channels))[None, :] < channels
    )
    return at, exists


def _square(tokens):
    """Indices of queries and keys, [T, 1] and [1, T], padded."""
    indices = jnp.arange(_padded(tokens))
    return indices[:, None], indices[None, :]


def _padded(size: int) -> int:
    """Triton computes with sides that are powers of 2, at least 16."""
    return max(16, pl.next_power_of_2(size))
