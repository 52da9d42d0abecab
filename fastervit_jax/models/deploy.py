"""A network for inference only: everything that does not depend on the image is computed once.

- Batch norms are folded into the convolutions before them, the last one into the head after it.
- Position embeddings and biases are stored as values for this image size.
- Drop path and dropout are removed. No array is a parameter or a statistic: `model.train()` does
  nothing, and an optimizer finds nothing to train.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.layers import (
    BatchNorm,
    DepthwiseConv3x3,
    Dropout,
    DropPath,
    Linear,
    full_precision,
)

if TYPE_CHECKING:
    from fastervit_jax.models.fastervit import FasterViT
    from fastervit_jax.models.stage import AttentionStage


_MOST_STORED_TOKENS = 128
"""Windows of up to so many tokens have their bias stored as it is added, tokens² numbers per head.
For larger ones every call computes it from its table, which is smaller."""


class Constant(nnx.Variable):
    """An array of a deployed network: neither a parameter nor a statistic."""


class Identity(nnx.Module):
    """Takes the place of a layer that was folded into another one."""

    active = False

    def __call__(self, x: jax.Array, **_) -> jax.Array:
        return x


class Affine(nnx.Module):
    """A batch norm that could not be folded into a neighbor: x · multiplier + shift."""

    def __init__(self, norm: BatchNorm):
        self.dtype = norm.dtype
        self.multiplier, self.shift = (Constant(array) for array in _affine(norm))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(full_precision(self.dtype))
        return (x * self.multiplier[...] + self.shift[...]).astype(self.dtype)


class Computed(nnx.Module):
    """Takes the place of a position network: returns its stored output."""

    def __init__(self, value: jax.Array):
        self.value = Constant(value)

    def __call__(self, coordinates) -> jax.Array:
        if len(coordinates) != len(self.value):
            raise _other_size()
        return self.value[...]


class StoredBias(nnx.Module):
    """Takes the place of a `RelativePositionBias`.

    Attributes:
        value: the bias, [heads, T, T].
        side: side of the square that the last of the T tokens form. More or fewer tokens in front
            of it have zero bias.
    """

    def __init__(self, value: jax.Array, side: int):
        self.value = Constant(value)
        self.side = side

    def __call__(self, tokens: int, side: int) -> jax.Array:
        """As of `RelativePositionBias`."""
        if side != self.side:
            raise _other_size()
        more = tokens - self.value.shape[-1]
        first, in_front = max(-more, 0), (max(more, 0), 0)
        return jnp.pad(self.value[...][:, first:, first:], ((0, 0), in_front, in_front))


def _other_size() -> ValueError:
    return ValueError(
        "Invalid image size: the model was deployed for another one. Build the model for this "
        "size, or use model.at_resolution((height, width)), and deploy that."
    )


def deployed(model: FasterViT) -> FasterViT:
    """A copy of a model for inference only; the model itself is not changed.

    Logits and features agree with the model's to rounding (1e-5 of the largest in float32).

    Raises:
        ValueError: the model is already deployed.
    """
    if model.deployed:
        raise ValueError("Invalid call of deploy(): the model is already deployed.")
    model = nnx.clone(model)
    model.eval()
    _fold_convolutions(model)
    _fold_last_norm(model)
    for stage in model.stages[2:]:
        _compute_positions(stage)
    make_constant(model)
    model.deployed = True
    return model


def _fold_convolutions(model: FasterViT) -> None:
    for block in (model.stem, *model.stages[0].blocks, *model.stages[1].blocks):
        for convolution, norm in (("conv1", "norm1"), ("conv2", "norm2")):
            fold_norm(getattr(block, convolution), getattr(block, norm))
            setattr(block, norm, Identity())


def fold_norm(convolution: Any, norm: BatchNorm) -> None:
    """Makes a convolution compute what it and the batch norm after it compute."""
    multiplier, shift = _affine(norm)
    convolution.kernel[...] *= multiplier
    if convolution.use_bias:
        shift = shift + multiplier * convolution.bias[...]
    convolution.bias = nnx.Param(shift)
    convolution.use_bias = True


def _affine(norm: BatchNorm) -> tuple[jax.Array, jax.Array]:
    """A batch norm in inference mode as a multiplier and a shift of each channel."""
    multiplier = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    return multiplier, norm.bias[...] - norm.mean[...] * multiplier


def _fold_last_norm(model: FasterViT) -> None:
    """Folds the last batch norm into the head. The average over positions between them commutes.

    Without a linear head, a multiplier and a shift remain. A layer norm stays as it is.
    """
    if not isinstance(model.norm, BatchNorm):
        return
    head: Any = model.head
    if type(head) not in (Linear, nnx.Linear) or not head.use_bias:
        model.norm = Affine(model.norm)
        return
    multiplier, shift = _affine(model.norm)
    head.bias[...] += jnp.dot(shift, head.kernel[...], precision="highest")
    head.kernel[...] *= multiplier[:, None]
    model.norm = Identity()


def _compute_positions(stage: AttentionStage) -> None:
    """Replaces the networks of position embeddings and biases by their outputs."""
    rows, columns = stage.geometry.window_grid
    window = stage.window_size
    for block in stage.blocks:
        own = block.ct_size**2 if block.carrier_layer is not None else 0
        carriers = own * rows * columns
        positions: list[Any] = [(block.window_position, window)]
        if block.carrier_position is not None:
            positions.append((block.carrier_position, math.isqrt(carriers)))
        layers: list[tuple[Any, int, int]] = [(block.window_layer, own + window**2, window)]
        if block.carrier_layer is not None:
            layers.append((block.carrier_layer, carriers, math.isqrt(carriers)))
        for layer, tokens, side in layers:
            bias = layer.attention.position_bias
            if tokens <= _MOST_STORED_TOKENS:
                layer.attention.position_bias = StoredBias(bias(tokens, side), side)
            else:
                positions.append((bias, side))
        for position, side in positions:
            position.network = Computed(position.network(position.coordinates(side)))


def make_constant(model: nnx.Module) -> None:
    """Turns every array into a constant, and every dropout into nothing.

    Kernels and biases get the type of the computation, which a call would convert them to. The
    depthwise convolution takes its bias as it is.
    """
    module: Any
    for _, module in nnx.iter_modules(model):
        for name, value in list(vars(module).items()):
            if isinstance(value, Dropout | DropPath):
                setattr(module, name, Identity())
            elif isinstance(value, nnx.Variable):
                array = value[...]
                if name in _converted(module) and module.dtype is not None:
                    array = array.astype(module.dtype)
                setattr(module, name, Constant(array))


def _converted(module: nnx.Module) -> tuple[str, ...]:
    """The arrays that a layer converts to the type of the computation."""
    if isinstance(module, DepthwiseConv3x3):
        return ("kernel",)
    return ("kernel", "bias") if isinstance(module, nnx.Linear | nnx.Conv) else ()
