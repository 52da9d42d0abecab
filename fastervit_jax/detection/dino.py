"""DINO: DETR with Improved DeNoising Anchor Boxes (Zhang et al., 2022), on a FasterViT."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.detection.config import NAMES, DinoConfig, dino_config
from fastervit_jax.detection.decoder import Decoder
from fastervit_jax.detection.encoder import Encoder, Levels, describe_levels
from fastervit_jax.detection.layers import Embedding
from fastervit_jax.detection.position import padding_mask
from fastervit_jax.detection.query_selection import QuerySelection
from fastervit_jax.models import Family, FasterViT, register
from fastervit_jax.models.layers import (
    BatchNorm,
    fan_in_uniform,
    full_precision,
    one_pass_variance,
    zeros,
)


class Denoising(NamedTuple):
    """Denoising queries of a batch (`detection.denoising`); they come before the others.

    Attributes:
        labels: a class of each, int32 [N, D]; −1 for padding, whose content is zero.
        references: logits of center boxes, float32 [N, D, 4].
        blocked: True where a query does not see another, [N, D + Q, D + Q].
    """

    labels: jax.Array
    references: jax.Array
    blocked: jax.Array


class Inputs(NamedTuple):
    """A batch of images of different sizes, padded on the right and below.

    Attributes:
        images: normalized, zero where padded, [N, H, W, 3].
        sizes: (height, width) of each image without padding, int32 [N, 2]; None: no padding.
        denoising: further queries, in training; None: none.
    """

    images: jax.Array
    sizes: jax.Array | None = None
    denoising: Denoising | None = None


class Outputs(NamedTuple):
    """What the network returns. Boxes are center boxes, as shares of the image.

    Attributes:
        logits: of each layer of the decoder, float32 [layers, N, D + Q, classes].
        boxes: [layers, N, D + Q, 4].
        selected_logits: of the encoder's proposals, [N, Q, classes].
        selected_boxes: [N, Q, 4].
    """

    logits: jax.Array
    boxes: jax.Array
    selected_logits: jax.Array
    selected_boxes: jax.Array


class Projection(nnx.Module):
    """A convolution to the width of the tokens, then a group norm: [N, H, W, C] → tokens."""

    def __init__(self, in_features: int, features: int, *, stride: int = 1, dtype, rngs: nnx.Rngs):
        side = 1 if stride == 1 else 3
        self.dtype = dtype
        self.conv = nnx.Conv(
            in_features,
            features,
            (side, side),
            strides=stride,
            padding=side // 2,
            kernel_init=fan_in_uniform(fan_in=side**2 * (in_features + features) / 6),
            bias_init=zeros,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.GroupNorm(
            features,
            num_groups=32,
            epsilon=1e-5,
            use_fast_variance=one_pass_variance(dtype),
            dtype=full_precision(dtype),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] → [N, H', W', features]."""
        x = self.conv(x.astype(self.dtype))
        return self.norm(x.astype(full_precision(self.dtype))).astype(self.dtype)


class MapNorms(nnx.Module):
    """A batch norm for each map of the backbone that is used."""

    def __init__(self, config: DinoConfig, *, dtype, rngs: nnx.Rngs):
        self.stages = config.stages
        for stage in config.stages:
            width = config.backbone.widths[stage]
            setattr(self, f"norm{stage}", BatchNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs))

    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        return [getattr(self, f"norm{stage}")(maps[stage]) for stage in self.stages]


class DINO(nnx.Module):
    """DINO on the maps of a FasterViT.

    It takes images of any size. Parameters, statistics, norms, softmax and coordinates are float32;
    `dtype` is the type of everything else.

    Attributes:
        config: the options it was built with.
        backbone: the FasterViT, without norm and head.
        deployed: False; there is no deployed form.
    """

    # What `create_model` notes on a model it makes.
    name: str
    class_names: tuple[str, ...] | None
    preprocessing: Any

    def __init__(self, config: DinoConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.deployed = False
        options = dict(dtype=dtype, rngs=rngs)
        self.backbone = FasterViT(config.backbone, **options)
        self.backbone.norm = nnx.data(None)  # of the classifier; the maps have norms of their own
        self.map_norms = MapNorms(config, **options)
        widths = [config.backbone.widths[stage] for stage in config.stages]
        self.projections = nnx.List(
            [Projection(width, config.hidden, **options) for width in widths]
            + [Projection(widths[-1], config.hidden, stride=2, **options)]
        )
        sizes = (config.hidden, config.heads, config.levels, config.points, config.feedforward)
        self.encoder = Encoder(*sizes, config.encoder_layers, **options)
        self.selection = QuerySelection(
            config.hidden, config.num_classes, config.queries, **options
        )
        self.decoder = Decoder(*sizes, config.decoder_layers, config.num_classes, **options)
        # One row more than classes, as in the official network, which never uses it.
        self.label_embedding = Embedding(config.num_classes + 1, config.hidden, rngs=rngs)

    def __call__(self, inputs: Inputs | jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Detects objects.

        Args:
            inputs: a batch, or normalized images [N, H, W, 3] without padding.
            rngs: the source of randomness, for training mode.

        Raises:
            ValueError: the images cannot be used; the message says why.
        """
        if not isinstance(inputs, Inputs):
            inputs = Inputs(inputs)
        maps = self.maps(inputs.images, rngs=rngs)
        tokens, levels = self.tokens(maps, inputs)
        memory = self.encoder(tokens, levels)
        selected = self.selection(memory, levels)
        content, references, blocked = selected.content, selected.references, None
        if inputs.denoising is not None:
            noisy = inputs.denoising
            content = jnp.concatenate([self._embed_labels(noisy.labels), content], axis=1)
            references = jnp.concatenate([noisy.references, references], axis=1)
            blocked = noisy.blocked
        decoded = self.decoder(content, references, memory, levels, blocked)
        return Outputs(decoded.logits, decoded.boxes, selected.logits, selected.boxes)

    def maps(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """The backbone's used maps after their norms: [N, H / stride, W / stride, channels]."""
        return self.map_norms(self.backbone.features(images, rngs=rngs))

    def tokens(self, maps: list[jax.Array], inputs: Inputs) -> tuple[jax.Array, Levels]:
        """Tokens of all levels one after the other, [N, S, C], and what is known of them."""
        sources = [*maps, maps[-1]]  # the last map makes two levels
        projected = [p(each) for p, each in zip(self.projections, sources, strict=True)]
        n, height, width, _ = inputs.images.shape
        sizes = inputs.sizes
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.asarray([height, width]), (n, 2))
        shapes = [(each.shape[1], each.shape[2]) for each in projected]
        levels = describe_levels(padding_mask(sizes, height, width), shapes, self.config.hidden)
        count = sum(rows * columns for rows, columns in shapes)
        if count < self.config.queries:
            raise ValueError(
                f"Invalid images of {height} × {width}: their maps have {count} positions, but the "
                f"network needs {self.config.queries} queries. Use larger images or fewer queries."
            )
        flat = [each.reshape(n, -1, self.config.hidden) for each in projected]
        return jnp.concatenate(flat, axis=1), levels

    def _embed_labels(self, labels: jax.Array) -> jax.Array:
        """Content of denoising queries with these classes: [N, D] → [N, D, C]."""
        vectors = self.label_embedding.embedding[...].astype(self.dtype)
        return jnp.where((labels >= 0)[..., None], vectors[jnp.maximum(labels, 0)], 0)


TORCH_MODULES = {
    r"^map_norms\.": "backbone.0.",
    r"^projections\.(\d+)\.conv": r"input_proj.\1.0",
    r"^projections\.(\d+)\.norm": r"input_proj.\1.1",
    r"^selection\.output": "transformer.enc_output",
    r"^selection\.norm": "transformer.enc_output_norm",
    r"^selection\.class_head": "transformer.enc_out_class_embed",
    r"^selection\.box_head": "transformer.enc_out_bbox_embed",
    r"^selection\.content": "transformer.tgt_embed",
    r"^label_embedding": "label_enc",
    r"^encoder$": "transformer",
    r"^(encoder|decoder)\.": r"transformer.\1.",
    r"position_head": "ref_point_head",
    r"class_head": "class_embed.0",
    r"box_head": "bbox_embed.0",
    r"(encoder\.layers\.\d+)\.attention_norm": r"\1.norm1",
    r"(encoder\.layers\.\d+)\.feedforward\.norm": r"\1.norm2",
    r"(encoder\.layers\.\d+)\.attention\.": r"\1.self_attn.",
    r"(decoder\.layers\.\d+)\.cross_norm": r"\1.norm1",
    r"(decoder\.layers\.\d+)\.self_norm": r"\1.norm2",
    r"(decoder\.layers\.\d+)\.feedforward\.norm": r"\1.norm3",
    r"cross_attention": "cross_attn",
    r"self_attention\.in_projection": "self_attn.in_proj",
    r"self_attention\.output": "self_attn.out_proj",
    r"attn\.value": "attn.value_proj",
    r"attn\.output": "attn.output_proj",
    r"feedforward\.expand": "linear1",
    r"feedforward\.contract": "linear2",
}
"""Our module names → those of the official files, in order (`weights.names`)."""

FAMILY = register(
    Family(
        "detection",
        tuple(NAMES),
        config=dino_config,
        module=DINO,
        torch_modules=TORCH_MODULES,
        torch_backbone="backbone.0.",
    )
)
