"""The whole network (paper, section 3.1 and figure 3)."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.config import ATTENTION_STAGES, STRIDES, FasterViTConfig
from fastervit_jax.models.conv_block import Downsample, Stem
from fastervit_jax.models.deploy import deployed
from fastervit_jax.models.families import Family, register
from fastervit_jax.models.layers import BatchNorm, full_precision, layer_norm, linear
from fastervit_jax.models.resolution import resized
from fastervit_jax.models.stage import AttentionStage, ConvStage
from fastervit_jax.models.variants import VARIANTS, variant_config


class FasterViT(nnx.Module):
    """FasterViT: two stages of convolutions, then two of (hierarchical) window attention.

    Parameters, statistics, norms and softmax are float32; `dtype` is the type of everything else.
    A new module is in training mode, as every NNX module; `create_model` returns one for inference.
    In training mode, pass `rngs` with a `dropout` stream where drop path or dropout is on.

    Attributes:
        config: the options it was built with.
        channels: channels of the four maps of `features`.
        strides: pixels of the image per position of these maps.
        num_features: channels of the pooled features that the head sees.
        deployed: whether this is what `deploy` returns.
    """

    # What `create_model` notes on a model it makes.
    name: str
    class_names: tuple[str, ...] | None
    preprocessing: Any

    def __init__(self, config: FasterViTConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        dtype = _checked_dtype(dtype)
        self.config = config
        self.dtype = dtype
        self.channels = config.widths
        self.strides = STRIDES
        self.num_features = config.widths[-1]
        self.deployed = False

        self.stem = Stem(config, dtype=dtype, rngs=rngs)
        self.stages: nnx.List[Any] = nnx.List(
            (AttentionStage if stage in ATTENTION_STAGES else ConvStage)(
                config, stage, dtype=dtype, rngs=rngs
            )
            for stage in range(4)
        )
        self.downsamples = nnx.List(
            Downsample(width, dtype=dtype, rngs=rngs) for width in config.widths[:-1]
        )
        self.norm: Any
        if config.layer_norm_last:
            self.norm = layer_norm(self.num_features, epsilon=1e-6, dtype=dtype, rngs=rngs)
        else:
            self.norm = BatchNorm(self.num_features, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.head = nnx.data(None)
        if config.num_classes:
            self.head = linear(
                self.num_features, config.num_classes, dtype=full_precision(dtype), rngs=rngs
            )

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Classifies images.

        Args:
            images: normalized, [N, H, W, channels], floating point.
            rngs: the source of randomness, for training mode with drop path or dropout.

        Returns:
            Logits [N, num_classes], float32 (pooled features [N, num_features] without a head).

        Raises:
            ValueError: the model was not built for such images; the message says what to do.
        """
        return self.classify(self.features(images, rngs=rngs)[-1])

    def features(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """The four stages' maps, before downsampling: [N, H/4, W/4, dim] … [N, H/32, W/32, 8·dim].

        Sides that strides do not divide are rounded up. Arguments and errors as in `__call__`.
        """
        self._check_images(images)
        _hint_at_jit(self.config, images)
        x = self.stem(images.astype(self.dtype))
        maps = []
        for index, stage in enumerate(self.stages):
            with jax.named_scope(f"stage{index + 1}"):
                x = stage(x, rngs)
                maps.append(x)
                if index < len(self.downsamples):
                    x = self.downsamples[index](x)
        return maps

    @jax.named_scope("head")
    def classify(self, last_map: jax.Array) -> jax.Array:
        """The last map of `features`, [N, H/32, W/32, 8·dim] → what `__call__` returns."""
        x = self.norm(last_map)
        pooled = jnp.mean(x.astype(full_precision(self.dtype)), axis=(1, 2))
        return pooled if self.head is None else self.head(pooled)

    @property
    def backbone(self) -> "FasterViT":
        """This network. Networks of other tasks have a FasterViT under this name."""
        return self

    def at_resolution(self, resolution: int | tuple[int, int]) -> "FasterViT":
        """The same network for images of another size, of any height and width.

        What depends on the size is recomputed: windows and padding, the pooling that makes carrier
        tokens, position embeddings and biases. The result is the any_res network that the official
        code builds for that size, in the same mode, with the weights of this one. Sizes for which
        the official code raises are taken as that network built for sides rounded up to multiples
        of 32.

        Weights are **shared**, not copied: training one model trains the other. Carrier-token
        weights which that size has no use for are absent from the result, so go from the original
        model to each size, not from size to size.

        Args:
            resolution: one side or (height, width), in pixels.

        Raises:
            ValueError: no network can be built for that size, or only with weights that this model
                does not have, or it is a deployed one (`deploy` comes last).
        """
        return resized(self, resolution)

    def deploy(self) -> "FasterViT":
        """A copy for inference only, which computes the same with less (see `models.deploy`)."""
        return deployed(self)

    def _check_images(self, images: jax.Array):
        channels = self.config.in_chans
        expected = f"normalized images [N, height, width, {channels}], floating point"
        if not hasattr(images, "shape") or not hasattr(images, "dtype"):
            raise ValueError(f"Invalid images: expected {expected}, got {type(images).__name__}.")
        if len(images.shape) != 4:
            hint = " For one image, use images[None]." if len(images.shape) == 3 else ""
            raise ValueError(
                f"Invalid images: expected {expected}, got shape {images.shape}.{hint}"
            )
        if images.shape[-1] != channels:
            hint = ""
            if images.shape[1] == channels:
                hint = " They look channels-first: use images.transpose(0, 2, 3, 1)."
            raise ValueError(
                f"Invalid images: expected {expected}, got shape {images.shape}.{hint}"
            )
        if 0 in images.shape:
            raise ValueError(f"Invalid images: expected at least one, got shape {images.shape}.")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"Invalid images: expected {expected}, got {images.dtype}. Divide by 255, subtract "
                f"the mean and divide by the standard deviation first."
            )


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)


def _hint_at_jit(config: FasterViTConfig, images: jax.Array) -> None:
    """Warns once if a large network runs outside `jit`, where JAX compiles each operation."""
    large = sum(config.depths) >= 12 and config.dim >= 64
    if large and not isinstance(images, jax.core.Tracer):
        _warn_once(
            "The model runs operation by operation, and JAX compiles each operation by itself. "
            "Compile the model as a whole, which is faster: "
            "nnx.jit(lambda model, images: model(images))(model, images)"
        )


def _checked_dtype(dtype) -> jnp.dtype:
    """Raises ValueError for anything but a floating-point type."""
    try:
        checked = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        checked = None
    if checked is None or not jnp.issubdtype(checked, jnp.floating):
        raise ValueError(f"Invalid dtype={dtype!r}: expected jnp.float32 or jnp.bfloat16.")
    return checked


FASTERVIT = register(
    Family("classification", tuple(VARIANTS), config=variant_config, module=FasterViT)
)


def abstract_model(config: FasterViTConfig, *, dtype=jnp.float32) -> FasterViT:
    """A FasterViT with shapes in place of weights (`Family.abstract`)."""
    return FASTERVIT.abstract(config, dtype=dtype)
