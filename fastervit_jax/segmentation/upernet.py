"""UperNet: Unified Perceptual Parsing for Scene Understanding (Xiao et al., 2018), on a FasterViT.

The network is that of mmsegmentation's `UPerHead` and auxiliary `FCNHead`, which the paper of
FasterViT trains on ADE20K.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models import Family, FasterViT, layouts, register
from fastervit_jax.models.layers import BatchNorm, Dropout, layer_norm, normal, zeros
from fastervit_jax.segmentation.config import BACKBONES, UperNetConfig, upernet_config
from fastervit_jax.segmentation.deploy import deployed
from fastervit_jax.segmentation.resize import adaptive_pool, convolve_resized, resize

POOL_SIZES = (1, 2, 3, 6)
AUXILIARY_STAGE = 2
"""The stage, from 0, whose map the auxiliary head sees."""


class Outputs(NamedTuple):
    """What the network returns in training mode.

    Attributes:
        decoder: logits [N, H/4, W/4, classes], float32.
        auxiliary: logits of the auxiliary head, [N, H/16, W/16, classes], float32; None without it.
    """

    decoder: jax.Array
    auxiliary: jax.Array | None


class UperNet(nnx.Module):
    """UperNet on the four maps of a FasterViT.

    It takes images of any size: at another size than it was built for, the backbone computes as
    `backbone.at_resolution(size)`.

    Attributes:
        config: the options it was built with.
        backbone: the FasterViT, without norm and head.
        deployed: whether this is what `deploy` returns.
    """

    # What `create_model` notes on a model it makes.
    name: str
    class_names: tuple[str, ...] | None
    preprocessing: Any

    def __init__(self, config: UperNetConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.deployed = False
        self.deterministic = False
        self.backbone = FasterViT(config.backbone, dtype=dtype, rngs=rngs)
        self.backbone.norm = nnx.data(None)  # of the classifier; the maps have norms of their own
        widths = config.backbone.widths
        self.norms: nnx.List[Any] = nnx.List(
            layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
            for width in (widths if config.map_norms else ())
        )
        options = dict(dropout=config.head_dropout, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(widths, config.channels, config.num_classes, **options)
        self.auxiliary = nnx.data(None)
        if config.auxiliary_channels:
            self.auxiliary = AuxiliaryHead(
                widths[AUXILIARY_STAGE], config.auxiliary_channels, config.num_classes, **options
            )

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` calls."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> Any:
        """Segments images.

        Args:
            images: normalized, [N, H, W, 3], floating point.
            rngs: the source of randomness, for training mode.

        Returns:
            Logits [N, H, W, num_classes], float32; in training mode the `Outputs` of both heads.
        """
        if self.deterministic:
            return resize(self.scores(images), images.shape[1:3])
        maps = self._maps(images, rngs)
        auxiliary = None
        if self.auxiliary is not None:
            auxiliary = self.auxiliary(maps[AUXILIARY_STAGE], rngs)
        return Outputs(self.decoder(maps, rngs), auxiliary)

    def deploy(self) -> "UperNet":
        """A copy for inference only, which computes the same with less (`segmentation.deploy`)."""
        return deployed(self)

    def scores(self, images: jax.Array) -> jax.Array:
        """Logits before they are resized: [N, H/4, W/4, num_classes], float32."""
        return self.decoder(self._maps(images, None), None)

    def _maps(self, images: jax.Array, rngs: nnx.Rngs | None) -> list[jax.Array]:
        backbone = self.backbone
        if images.ndim == 4 and images.shape[1:3] != backbone.config.resolution:
            backbone = backbone.at_resolution((images.shape[1], images.shape[2]))
        maps = backbone.features(images, rngs=rngs)
        norms = self.norms or [_same] * len(maps)
        return [norm(each) for norm, each in zip(norms, maps, strict=True)]


def _same(maps: jax.Array) -> jax.Array:
    return maps


class Decoder(nnx.Module):
    """Four maps → logits at the size of the first: [N, H/4, W/4, classes], float32.

    A pyramid pools the last map. Then a feature pyramid network (FPN) adds each map, from the last
    to the first, to the one before it. All levels together make the logits.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        channels: int,
        num_classes: int,
        *,
        dropout: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        def convolution(inputs: int, side: int, kind=ConvNormRelu):
            return kind(inputs, channels, side, dtype=dtype, rngs=rngs)

        self.pyramid = nnx.List(convolution(widths[-1], 1) for _ in POOL_SIZES)
        self.bottleneck = convolution(
            widths[-1] + len(POOL_SIZES) * channels, 3, ResizedConvNormRelu
        )
        self.laterals = nnx.List(convolution(width, 1) for width in widths[:-1])
        self.levels = nnx.List(convolution(channels, 3) for _ in widths[:-1])
        self.fusion = convolution(len(widths) * channels, 3, ResizedConvNormRelu)
        self.dropout = channel_dropout(dropout)
        self.classifier = classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    @jax.named_scope("decoder")
    def __call__(self, maps: list[jax.Array], rngs: nnx.Rngs | None) -> jax.Array:
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps[:-1], strict=True)]
        laterals.append(self._pooled(maps[-1]))
        for index in range(len(laterals) - 1, 0, -1):
            below = laterals[index - 1]
            laterals[index - 1] = below + resize(laterals[index], below.shape[1:3])

        levels = [level(x) for level, x in zip(self.levels, laterals[:-1], strict=True)]
        levels.append(laterals[-1])
        size = levels[0].shape[1:3]
        fused = self.fusion(levels, size)
        return self.classifier(self.dropout(fused, rngs=rngs)).astype(_float32(fused))

    def _pooled(self, last: jax.Array) -> jax.Array:
        """The last map, and its averages over 1, 2 × 2, 3 × 3 and 6 × 6 parts."""
        parts = [last]
        for bins, convolution in zip(POOL_SIZES, self.pyramid, strict=True):
            parts.append(convolution(adaptive_pool(last, bins)))
        return self.bottleneck(parts, last.shape[1:3])


class AuxiliaryHead(nnx.Module):
    """One map → logits of its size, float32: a 3×3 convolution and a classifier (`FCNHead`)."""

    def __init__(
        self, width: int, channels: int, num_classes: int, *, dropout: float, dtype, rngs: nnx.Rngs
    ):
        self.convolution = ConvNormRelu(width, channels, 3, dtype=dtype, rngs=rngs)
        self.dropout = channel_dropout(dropout)
        self.classifier = classifier(channels, num_classes, dtype=dtype, rngs=rngs)

    @jax.named_scope("auxiliary")
    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        x = self.dropout(self.convolution(x), rngs=rngs)
        return self.classifier(x).astype(_float32(x))


class ConvNormRelu(nnx.Module):
    """A convolution without bias, batch norm, ReLU: [N, H, W, inputs] → [N, H, W, channels]."""

    def __init__(self, inputs: int, channels: int, side: int, *, dtype, rngs: nnx.Rngs):
        # Kaiming initialization by fan-out, mmengine's for convolutions with ReLU.
        deviation = math.sqrt(2 / (side * side * channels))
        self.conv = nnx.Conv(
            inputs,
            channels,
            (side, side),
            padding=side // 2,
            use_bias=False,
            kernel_init=normal(deviation),
            dtype=dtype,
            conv_general_dilated=layouts.convolution,
            rngs=rngs,
        )
        self.norm: Any = BatchNorm(channels, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x)))


class ResizedConvNormRelu(ConvNormRelu):
    """The same on several maps, as if they were resized to one size and concatenated."""

    def __call__(self, maps: list[jax.Array], size: tuple[int, ...]) -> jax.Array:
        out = convolve_resized(maps, size, self.conv.kernel[...].astype(maps[0].dtype))
        if self.conv.bias is not None:  # deployed
            out = out + self.conv.bias[...].astype(out.dtype)
        return jax.nn.relu(self.norm(out))


def channel_dropout(rate: float) -> Dropout:
    """Drops whole channels of an image (`torch.nn.Dropout2d`)."""
    return Dropout(rate, broadcast_dims=(1, 2))


def classifier(channels: int, num_classes: int, *, dtype, rngs: nnx.Rngs) -> nnx.Conv:
    """A 1×1 convolution to the classes; initial weights normal of deviation 0.01."""
    return nnx.Conv(
        channels,
        num_classes,
        (1, 1),
        kernel_init=normal(0.01),
        bias_init=zeros,
        dtype=dtype,
        rngs=rngs,
    )


def _float32(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)


UPERNET = register(
    Family(
        "segmentation",
        tuple(BACKBONES),
        config=upernet_config,
        module=UperNet,
        # The names of mmsegmentation's checkpoints.
        torch_modules={
            r"^norms\.(\d)": r"backbone.norm\1",
            r"^decoder\.pyramid\.(\d)\.": r"decode_head.psp_modules.\1.1.",
            r"^decoder\.bottleneck\.": "decode_head.bottleneck.",
            r"^decoder\.laterals\.": "decode_head.lateral_convs.",
            r"^decoder\.levels\.": "decode_head.fpn_convs.",
            r"^decoder\.fusion\.": "decode_head.fpn_bottleneck.",
            r"^auxiliary\.convolution\.": "auxiliary_head.convs.0.",
            r"^decoder\.classifier": "decode_head.conv_seg",
            r"^auxiliary\.classifier": "auxiliary_head.conv_seg",
            r"\.norm$": ".bn",
        },
    )
)
