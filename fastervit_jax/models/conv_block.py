"""The convolution blocks of the first two stages, the stem and the downsampling."""

import jax
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import BatchNorm, DropPath, conv3x3, gelu, layer_norm
from fastervit_jax.models.transformer import layer_scale


class Stem(nnx.Module):
    """Two stride-2 convolutions: images [N, H, W, channels] → [N, H/4, W/4, dim] (`PatchEmbed`)."""

    def __init__(self, config: FasterViTConfig, *, dtype, rngs: nnx.Rngs):
        channels, inner, width = config.in_chans, config.in_dim, config.dim
        options = dict(stride=2, use_bias=False, dtype=dtype, rngs=rngs)
        self.conv1 = conv3x3(channels, inner, **options)
        self.norm1 = BatchNorm(inner, epsilon=1e-4, dtype=dtype, rngs=rngs)
        self.conv2 = conv3x3(inner, width, **options)
        self.norm2 = BatchNorm(width, epsilon=1e-4, dtype=dtype, rngs=rngs)

    @jax.named_scope("stem")
    def __call__(self, images: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm1(self.conv1(images)))
        return jax.nn.relu(self.norm2(self.conv2(x)))


class ConvBlock(nnx.Module):
    """A residual block of two 3×3 convolutions on maps [N, H, W, C]; nothing follows the sum."""

    def __init__(self, config: FasterViTConfig, stage: int, block: int, *, dtype, rngs: nnx.Rngs):
        width = config.widths[stage]
        self.conv1 = conv3x3(width, width, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.conv2 = conv3x3(width, width, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.scale = layer_scale(config.layer_scale_conv, width)
        self.drop_path = DropPath(config.drop_path_rates(stage)[block])

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        branch = gelu(_normed(self.conv1, self.norm1, x))
        branch = _normed(self.conv2, self.norm2, branch)
        if self.scale is not None:
            branch = self.scale(branch)
        return x + self.drop_path(branch, rngs=rngs)


def _normed(convolution: nnx.Conv, norm: nnx.Module, x: jax.Array) -> jax.Array:
    """A convolution with bias, then its norm.

    Batch norm in training subtracts the mean, and the bias with it, so the gradient of the bias is
    zero. Computing it would cost a pass over the map and return rounding errors
    (benchmarks/NOTES.md).
    """
    if _in_training(norm):
        structure, arrays = nnx.split(convolution)
        arrays["bias"] = jax.lax.stop_gradient(arrays["bias"])
        convolution = nnx.merge(structure, arrays)
    return norm(convolution(x))


def _in_training(norm: nnx.Module) -> bool:
    """Whether a norm takes its statistics from the batch."""
    return isinstance(norm, BatchNorm) and not norm.use_running_average


class Downsample(nnx.Module):
    """Layer norm, then a stride-2 convolution: [N, H, W, C] → [N, ⌈H/2⌉, ⌈W/2⌉, 2C]."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.conv = conv3x3(width, 2 * width, stride=2, use_bias=False, dtype=dtype, rngs=rngs)

    @jax.named_scope("downsample")
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))
