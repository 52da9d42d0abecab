"""Layers as the reference computes them, with its initial weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models import layouts


def full_precision(dtype) -> jnp.dtype:
    """The type for statistics, softmax, norms and positions: float32, or wider if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def normal(deviation: float):
    """An initializer: normal with mean 0."""
    return _initializer(
        lambda generator, shape: deviation * generator.standard_normal(shape, np.float32),
        lambda key, shape: deviation * jax.random.normal(key, shape),
    )


def fan_in_uniform(fan_in: float):
    """An initializer: uniform within 1/√fan-in, torch's default for convolutions."""
    bound = 1 / math.sqrt(fan_in)
    return _initializer(
        lambda generator, shape: bound * (2 * generator.random(shape, np.float32) - 1),
        lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
    )


def _initializer(on_host, traced):
    """An initializer that draws with NumPy, because JAX would compile a program for each shape.

    The seed is the key, so the weights do not depend on the machine. Inside a traced function,
    whose keys have no value yet, JAX draws: the distribution is the same, the numbers differ.
    """

    def initializer(key, shape, dtype=jnp.float32):
        if isinstance(key, jax.core.Tracer):
            # Flat, because XLA for CPU takes seconds to compile loops over short axes.
            return traced(key, (math.prod(shape),)).reshape(shape).astype(dtype)
        words = np.asarray(jax.random.key_data(key)).ravel()
        return jnp.asarray(on_host(np.random.default_rng(words), shape), dtype)

    return initializer


def constant(value: float):
    """An initializer: one value, made by NumPy as in `_initializer`."""

    def initializer(key, shape, dtype=jnp.float32):
        del key
        return jnp.asarray(np.full(shape, value), dtype)

    return initializer


zeros, _ones = constant(0), constant(1)


class Linear(nnx.Linear):
    """A linear layer on the last axis, arranged as the device wants it (`layouts.linear`)."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return layouts.linear(x.astype(self.dtype), *self.arrays())

    def arrays(self) -> tuple[jax.Array, jax.Array | None]:
        """Kernel and bias, in the type of the computation."""
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return self.kernel[...].astype(self.dtype), bias


def linear(
    in_features: int, out_features: int, *, use_bias: bool = True, dtype, rngs: nnx.Rngs
) -> Linear:
    """A linear layer with the reference's initial weights: normal of deviation 0.02, bias zero."""
    return Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=normal(0.02),
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
    )


def conv3x3(
    in_features: int,
    out_features: int,
    *,
    stride: int = 1,
    use_bias: bool = True,
    dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 3×3 convolution padded by one on every side, also at stride 2, where "SAME" would not.

    Initial weights and biases are uniform within 1/√fan-in, torch's default.
    """
    uniform = fan_in_uniform(fan_in=9 * in_features)
    return nnx.Conv(
        in_features,
        out_features,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=use_bias,
        kernel_init=uniform,
        bias_init=uniform,
        dtype=dtype,
        conv_general_dilated=layouts.convolution,
        rngs=rngs,
    )


class DepthwiseConv3x3(nnx.Conv):
    """A 3×3 convolution of each channel by itself, padded by one; initial weights as `conv3x3`."""

    bias: Any

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        uniform = fan_in_uniform(fan_in=9)
        super().__init__(
            features,
            features,
            (3, 3),
            padding=1,
            feature_group_count=features,
            kernel_init=uniform,
            bias_init=uniform,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] → the same."""
        kernel = self.kernel[...].astype(self.dtype)
        return layouts.depthwise_conv3x3(x.astype(self.dtype), kernel, self.bias[...])


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x·Φ(x), where Φ is the normal distribution function (torch's default).

    Computed in float32 or wider. bfloat16 inputs use `fitted_gelu`, because erf is slow on TPUs
    (benchmarks/NOTES.md). Its error is smaller than bfloat16's rounding of most values.
    """
    if x.dtype == jnp.bfloat16:
        return layouts.by_platform(x, cuda=recomputed_gelu, default=fitted_gelu)
    wide = x.astype(full_precision(x.dtype))
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def mlp_gelu(x: jax.Array) -> jax.Array:
    """`gelu` of a linear layer's output; on GPUs in bfloat16 by `tanh_gelu`."""
    if x.dtype == jnp.bfloat16:
        return layouts.by_platform(x, cuda=tanh_gelu, default=fitted_gelu)
    return gelu(x)


def fitted_gelu(x: jax.Array) -> jax.Array:
    """GELU within 3e-5 (the usual tanh form: 5e-4): Φ(x) = ½ + ½·tanh(x·p(x²)), p fitted."""
    dtype = x.dtype
    x = x.astype(full_precision(dtype))
    # Beyond x = 6 tanh is 1, and the polynomial of no use.
    square = jnp.minimum(x * x, 36.0)
    argument = x * (0.797507883 + square * (0.0370056473 - square * 0.000351516984))
    half = 0.5 * x
    return (half + half * jnp.tanh(argument)).astype(dtype)


@jax.custom_vjp
def recomputed_gelu(x: jax.Array) -> jax.Array:
    """`fitted_gelu`, whose gradient needs no array but x."""
    return fitted_gelu(x)


@jax.custom_vjp
def tanh_gelu(x: jax.Array) -> jax.Array:
    """GELU by the usual tanh form, within 5e-4; the gradient is that of `recomputed_gelu`.

    cuBLASLt computes it in float32 with the product before it, without a pass of its own. XLA finds
    the form only in the type of the product.
    """
    return jax.nn.gelu(x, approximate=True)


def _gradient_from(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Without the barrier, XLA stores the tanh of the forward pass.
    x = jax.lax.optimization_barrier(x)
    slope = jax.grad(lambda x: fitted_gelu(x).sum())(x.astype(full_precision(x.dtype)))
    return ((gradient * slope).astype(x.dtype),)


tanh_gelu.defvjp(lambda x: (tanh_gelu(x), x), _gradient_from)
recomputed_gelu.defvjp(
    lambda x: (recomputed_gelu(x), x),
    # Without this barrier, the batch norm before it would read a gradient stored in float32.
    lambda x, gradient: jax.lax.optimization_barrier(_gradient_from(x, gradient)),
)


def one_pass_variance(dtype) -> bool:
    """Whether a variance is computed as mean(x²) − mean(x)², which reads x once instead of twice.

    In float32 this loses about mean² · 2⁻²⁴. 16-bit inputs have lost mean² · 2⁻²² or more to their
    own rounding, so the loss does not matter there. Wider inputs take two passes, as in torch.
    """
    return jnp.finfo(dtype).bits <= 16


def layer_norm(features: int, *, epsilon: float, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the last axis; statistics, scale and bias in float32 or wider."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=one_pass_variance(dtype),
        promote_dtype=_only_the_input,
        scale_init=_ones,
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
    )


def _only_the_input(arrays, /, *, dtype=None, inexact=True):
    """A norm's `promote_dtype` that leaves scale and bias in float32; Flax's would round them."""
    del inexact
    x, scale, bias = arrays
    return x.astype(dtype), scale, bias


class BatchNorm(nnx.BatchNorm):
    """Batch norm over all axes but the last, with torch's running statistics.

    The output uses the biased variance of the batch. The running average uses the unbiased one, as
    `torch.nn.BatchNorm2d` (Flax's own averages the biased one). Statistics and normalization are
    in float32 or wider, whatever the type of the input.

    Attributes:
        group_size: in training, how many consecutive images are normalized together, as on one
            GPU of the reference. The running averages use the mean over the groups. None: all
            images. `model.set_attributes(group_size=128)` sets it in a whole model.
    """

    scale: Any
    bias: Any

    def __init__(self, features: int, *, epsilon: float, dtype, rngs: nnx.Rngs):
        super().__init__(
            features,
            momentum=0.9,
            epsilon=epsilon,
            scale_init=_ones,
            bias_init=zeros,
            dtype=dtype,
            rngs=rngs,
        )
        self.group_size: int | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(full_precision(self.dtype))
        if self.use_running_average:
            return self._normalize(x, self.mean[...], self.var[...])
        groups = x.reshape(-1, self.group_size or len(x), *x.shape[1:])
        mean, var = self._update_statistics(groups)
        return self._normalize(groups, mean, var).reshape(x.shape)

    def _normalize(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return ((x - mean) * multiplier + self.bias[...]).astype(self.dtype)

    def _update_statistics(self, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each group's mean and variance; the running averages move towards their mean."""
        count = math.prod(groups.shape[1:]) // self.num_features
        if count < 2:
            raise ValueError(
                f"Invalid input of batch norm in training mode: expected more than one value per "
                f"channel, got groups of {groups.shape[1:]}. Use a larger batch or image, or "
                f"model.eval()."
            )
        axes = tuple(range(1, groups.ndim - 1))
        mean = jnp.mean(groups, axes, keepdims=True)
        if one_pass_variance(self.dtype):
            mean_of_squares = jnp.mean(jnp.square(groups), axes, keepdims=True)
            var = jnp.maximum(mean_of_squares - jnp.square(mean), 0)
        else:
            var = jnp.mean(jnp.square(groups - mean), axes, keepdims=True)
        self._move(self.mean, mean)
        self._move(self.var, var * (count / (count - 1)))
        return mean, var

    def _move(self, running: nnx.Variable, of_groups: jax.Array) -> None:
        batch = of_groups.reshape(len(of_groups), -1).mean(axis=0)
        running[...] += (1 - self.momentum) * (batch - running[...])


class Dropout(nnx.Dropout):
    """Dropout that refuses to run without random numbers, with a sentence."""

    @property
    def active(self) -> bool:
        """Whether a call drops anything."""
        return self.rate > 0 and not self.deterministic

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.active:
            _check_streams(rngs)
        return super().__call__(x, rngs=rngs)


class DropPath(nnx.Module):
    """Sets a branch to zero for whole entries of the first axis, and scales the others by 1/keep.

    Stochastic depth (Huang et al., 2016), as `timm.layers.DropPath`. The first axis is the image in
    convolution blocks and for carrier tokens, and the window in window attention.

    Attributes:
        keep: probability of keeping an entry; in a loop over blocks, a scalar array.
        deterministic: keep all entries (inference).
    """

    def __init__(self, rate: float):
        self.keep: float | jax.Array = 1 - rate
        self.deterministic = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.deterministic or (isinstance(self.keep, float | int) and self.keep == 1):
            return x
        rngs = _check_streams(rngs)
        keep = jnp.asarray(self.keep, full_precision(x.dtype))
        kept = jax.random.bernoulli(rngs.dropout(), keep, (len(x), *(1,) * (x.ndim - 1)))
        return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


def _check_streams(rngs: nnx.Rngs | None) -> nnx.Rngs:
    # A bare key would give every branch the same random numbers.
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(
            f"Invalid rngs: drop path and dropout need an nnx.Rngs with a dropout stream in "
            f"training mode, got {type(rngs).__name__}. Call "
            f"model(images, rngs=nnx.Rngs(dropout=seed)), or model.eval() first."
        )
    return rngs
