"""Layers as the reference computes them, with its initial weights."""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx


def full_precision(dtype) -> jnp.dtype:
    """The type for statistics, softmax, norms and positions: float32, or wider if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def lay_out(module: nnx.Module, platform: str) -> None:
    """Sets `platform` in all parts that have it: what the module is to run on.

    "cpu", "gpu" or "tpu", where the default is this machine's; "any" for nothing in particular.
    """
    module.set_attributes(platform=platform, raise_if_not_found=False)


def _in_a_row(draw):
    """An initializer that draws with a shape of one axis: the same numbers.

    XLA unrolls the loops over short axes on CPU, and takes seconds to compile the draw of one small
    kernel.
    """

    def initializer(key, shape, dtype=jnp.float32):
        return draw(key, (math.prod(shape),), dtype).reshape(shape)

    return initializer


def linear(
    in_features: int, out_features: int, *, use_bias: bool = True, dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with the reference's initial weights: normal of deviation 0.02, bias zero."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        kernel_init=_in_a_row(nnx.initializers.normal(0.02)),
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
    uniform = _uniform(fan_in=9 * in_features)
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
        rngs=rngs,
    )


def _uniform(fan_in: int):
    """An initializer that draws uniformly within 1/√fan-in."""
    bound = 1 / math.sqrt(fan_in)

    @_in_a_row
    def uniform(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform


class DepthwiseConv3x3(nnx.Conv):
    """A 3×3 convolution of every channel by itself, padded by one; initial weights as `conv3x3`.

    Attributes:
        platform: what it is to run on (`lay_out`). XLA has no fast kernel for CPUs: there it is the
            sum of nine shifted maps, fifty times as fast (gradients: eight times).
    """

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        uniform = _uniform(fan_in=9)
        super().__init__(
            features,
            features,
            (3, 3),
            padding=1,
            feature_group_count=features,
            kernel_init=uniform,
            bias_init=uniform,
            conv_general_dilated=_depthwise,
            dtype=dtype,
            rngs=rngs,
        )
        self.platform = jax.default_backend()

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] → the same."""
        if self.platform != "cpu":
            return super().__call__(x)
        wide = full_precision(self.dtype)
        x, kernel = (each.astype(self.dtype).astype(wide) for each in (x, self.kernel[...]))
        values = kernel.reshape(9, -1)
        taps = (shifted * value for shifted, value in zip(_shifted(x), values, strict=True))
        return (sum(taps) + self.bias[...]).astype(self.dtype)


def _shifted(x: jax.Array) -> Iterator[jax.Array]:
    """What each of a 3×3 kernel's nine values, row by row, meets in maps padded by one."""
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in itertools.product(range(3), repeat=2):
        yield padded[:, i : i + rows, j : j + columns]


def _depthwise(images: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` for depthwise 3×3 kernels at stride 1, padded by one.

    The kernel's gradient is nine sums. As the grouped convolution that JAX makes of it, XLA's
    partitioner gets it wrong: on a mesh with an axis along which images are not split, such as
    `tensor`, it comes out times that axis's size (JAX 0.10.2; tests/training/test_meshes.py).
    """

    def plain(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)

    def backward(saved, gradient):
        images, kernel = saved
        (to_images,) = jax.vjp(lambda images: plain(images, kernel), images)[1](gradient)
        wide = full_precision(images.dtype)
        taps = [jnp.sum(tap * gradient, (0, 1, 2), dtype=wide) for tap in _shifted(images)]
        return to_images, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)

    convolve = jax.custom_vjp(plain)
    convolve.defvjp(lambda images, kernel: (plain(images, kernel), (images, kernel)), backward)
    return convolve(images, kernel)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x·Φ(x) with Φ the normal distribution function, as torch has it.

    Computed in float32 or wider. For bfloat16 a fit serves (`fitted_gelu`), whose error is below
    that type's rounding of all but results near zero: TPUs are slow at erf (benchmarks/NOTES.md).
    """
    wide = x.astype(full_precision(x.dtype))
    if x.dtype == jnp.bfloat16:
        return fitted_gelu(wide).astype(x.dtype)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def fitted_gelu(x: jax.Array) -> jax.Array:
    """GELU within 3e-5 (the usual tanh form: 5e-4): Φ(x) = ½ + ½·tanh(x·p(x²)), p fitted."""
    # Beyond x = 6 tanh is 1, and the polynomial of no use.
    square = jnp.minimum(x * x, 36.0)
    argument = x * (0.797507883 + square * (0.0370056473 - square * 0.000351516984))
    half = 0.5 * x
    return half + half * jnp.tanh(argument)


def one_pass_variance(dtype) -> bool:
    """Whether a variance may be taken as mean(x²) − mean(x)², which reads x once instead of twice.

    In float32 that loses about mean² · 2⁻²⁴. Inputs of 16 bits have lost mean² · 2⁻²² or more to
    their own rounding; for wider ones the second pass, as torch has it, is worth its time.
    """
    return jnp.finfo(dtype).bits <= 16


def layer_norm(features: int, *, epsilon: float, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm over the last axis; statistics, scale and bias in float32 or wider."""
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=one_pass_variance(dtype),
        promote_dtype=_only_the_input,
        dtype=dtype,
        rngs=rngs,
    )


def _only_the_input(arrays, /, *, dtype=None, inexact=True):
    """A norm's `promote_dtype`: input, scale, bias; Flax's own would round the last two as well."""
    del inexact
    x, scale, bias = arrays
    return x.astype(dtype), scale, bias


class BatchNorm(nnx.BatchNorm):
    """Batch norm over all axes but the last, with torch's running statistics.

    Normalisation uses the biased variance of the batch, the running average the unbiased one
    (`torch.nn.BatchNorm2d`; Flax's own averages the biased one). Statistics and normalisation are
    in float32 or wider, whatever the type of the input. Maps may hold several images side by side
    in their channels (`models.pairs`).

    Attributes:
        group_size: in training, how many images in a row are normalised together, as on one device
            of the reference; the running averages take the mean over the groups. None: all of them.
            `model.set_attributes(group_size=128)` sets it in a whole model.
    """

    def __init__(self, features: int, *, epsilon: float, dtype, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.group_size: int | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(full_precision(self.dtype))
        if self.use_running_average:
            return self._normalised(x, self.mean[...], self.var[...])
        abreast, rest = divmod(x.shape[-1], self.num_features)
        if rest or not abreast or (self.group_size or 0) % abreast:
            raise ValueError(
                f"Batch norm of {self.num_features} channels, in groups of "
                f"{self.group_size or 'all'} images, cannot take a map of {x.shape}."
            )
        rows = self.group_size // abreast if self.group_size else len(x)
        groups = x.reshape(-1, rows, *x.shape[1:])
        mean, var = self._update_statistics(groups)
        return self._normalised(groups, mean, var).reshape(x.shape)

    def _normalised(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        mean, multiplier, bias = (
            for_all_abreast(each, x.shape[-1]) for each in (mean, multiplier, self.bias[...])
        )
        return ((x - mean) * multiplier + bias).astype(self.dtype)

    def _update_statistics(self, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each group's mean and variance; the running averages move towards their mean."""
        count = math.prod(groups.shape[1:]) // self.num_features
        if count < 2:
            raise ValueError(
                f"Batch norm in training mode needs more than one value a channel; its groups are "
                f"{groups.shape[1:]}. Use a larger batch or image, or model.eval()."
            )
        mean = self._mean(groups)
        if one_pass_variance(self.dtype):
            var = jnp.maximum(self._mean(jnp.square(groups)) - jnp.square(mean), 0)
        else:
            var = self._mean(jnp.square(groups - for_all_abreast(mean, groups.shape[-1])))
        self._move(self.mean, mean)
        self._move(self.var, var * (count / (count - 1)))
        return mean, var

    def _mean(self, groups: jax.Array) -> jax.Array:
        """Each group's mean of every channel, over the images side by side as well."""
        means = jnp.mean(groups, tuple(range(1, groups.ndim - 1)), keepdims=True)
        if groups.shape[-1] == self.num_features:
            return means
        return means.reshape(*means.shape[:-1], -1, self.num_features).mean(axis=-2)

    def _move(self, running: nnx.Variable, of_groups: jax.Array) -> None:
        batch = of_groups.reshape(len(of_groups), -1).mean(axis=0)
        running[...] += (1 - self.momentum) * (batch - running[...])


def for_all_abreast(of_channels: jax.Array, channels: int) -> jax.Array:
    """What holds for one image's channels, for those of all images side by side."""
    times = channels // of_channels.shape[-1]
    return jnp.tile(of_channels, times) if times > 1 else of_channels


class Dropout(nnx.Dropout):
    """Dropout that says what is missing where it has nothing to draw from."""

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if self.rate > 0 and not self.deterministic:
            _check_streams(rngs)
        return super().__call__(x, rngs=rngs)


class DropPath(nnx.Module):
    """Drops a branch for whole entries of the first axis, scaling the kept ones by 1/keep.

    Stochastic depth (Huang et al., 2016), as `timm.layers.DropPath`. The first axis is images in a
    convolution block and for carrier tokens, windows in window attention.

    Attributes:
        keep: probability of keeping an entry; in a loop over blocks, a scalar array.
        deterministic: whether all are kept (inference).
    """

    def __init__(self, rate: float):
        self.keep: float | jax.Array = 1 - rate
        self.deterministic = False

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None, abreast: int = 1
    ) -> jax.Array:
        """Drops entries of x; `abreast` of them lie side by side in the last axis."""
        if self.deterministic or (isinstance(self.keep, float | int) and self.keep == 1):
            return x
        _check_streams(rngs)
        keep = jnp.asarray(self.keep, full_precision(x.dtype))
        kept = jax.random.bernoulli(rngs.dropout(), keep, (len(x) * abreast, *(1,) * (x.ndim - 1)))
        if abreast > 1:
            kept = kept.reshape(len(x), *(1,) * (x.ndim - 2), abreast)
            kept = jnp.repeat(kept, x.shape[-1] // abreast, axis=-1)
        return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


def _check_streams(rngs) -> None:
    # A bare key would serve every branch, and all would draw the same.
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(
            f"In training mode drop path and dropout draw random numbers, from an nnx.Rngs "
            f"with a dropout stream, not from {type(rngs).__name__}: call "
            f"model(images, rngs=nnx.Rngs(dropout=seed)), or model.eval() first."
        )
