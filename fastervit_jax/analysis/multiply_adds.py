"""Count the multiply-adds of a network from its architecture.

As in papers, only convolutions and matrix products count, and padding of convolutions is included.
Nothing is traced, so the result can be compared with the count of a compiler.
"""

import dataclasses
import math

from fastervit_jax.detection.config import DinoConfig
from fastervit_jax.models.config import ATTENTION_STAGES, FasterViTConfig

_POSITION_HIDDEN = 512


@dataclasses.dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of a forward pass.

    Attributes:
        stem: first and second convolution of the stem, per image.
        stages: blocks and carrier tokenizer of each stage, per image.
        downsamples: the three downsampling layers, per image.
        head: the head, per image.
        positions: position networks of each stage, per forward pass of any batch size.
    """

    stem: tuple[int, int]
    stages: tuple[int, ...]
    downsamples: tuple[int, ...]
    head: int
    positions: tuple[int, ...]

    @property
    def per_image(self) -> int:
        """Multiply-adds per image, without position networks."""
        return sum(self.stem) + sum(self.stages) + sum(self.downsamples) + self.head

    @property
    def per_pass(self) -> int:
        """Multiply-adds per forward pass of any batch size."""
        return sum(self.positions)


def multiply_adds(config: FasterViTConfig) -> MultiplyAdds:
    """Counts the multiply-adds of a network at its resolution."""
    height, width = config.resolution
    halves = -(-height // 2) * -(-width // 2)
    areas = [rows * columns for rows, columns in map(config.map_size, range(4))]
    widths = config.widths
    stages, positions = [], []
    for stage in range(4):
        blocks = config.depths[stage]
        if stage not in ATTENTION_STAGES:
            area = areas[stage]
            if config.pad_all_stages:
                window = config.window_size[stage]
                area = math.prod(-(-side // window) * window for side in config.map_size(stage))
            stages.append(blocks * 2 * area * 9 * widths[stage] ** 2)
            positions.append(0)
        else:
            per_image, per_pass = _attention_stage(config, stage)
            stages.append(per_image)
            positions.append(per_pass)
    return MultiplyAdds(
        stem=(
            halves * 9 * config.in_chans * config.in_dim,
            areas[0] * 9 * config.in_dim * config.dim,
        ),
        stages=tuple(stages),
        downsamples=tuple(areas[i + 1] * 9 * widths[i] * widths[i + 1] for i in range(3)),
        head=widths[-1] * config.num_classes,
        positions=tuple(positions),
    )


def _attention_stage(config: FasterViTConfig, stage: int) -> tuple[int, int]:
    """Returns multiply-adds of a stage per image and per forward pass."""
    if not config.depths[stage]:
        return 0, 0
    width, heads, window = config.widths[stage], config.num_heads[stage], config.window_size[stage]
    geometry = config.geometry(stage)
    windows = geometry.window_grid[0] * geometry.window_grid[1]
    carriers = config.ct_size**2 if geometry.hierarchical else 0
    tokens = window**2 + carriers
    per_image = windows * _transformer_layer(config, width, tokens)
    per_pass = _position_network(window**2, width)
    per_pass += _position_network((2 * window - 1) ** 2, heads)
    tokenizer = 0
    if geometry.hierarchical:
        per_image += _transformer_layer(config, width, windows * carriers)
        side = int((windows * carriers) ** 0.5)
        per_pass += _position_network((2 * side - 1) ** 2, heads)
        if geometry.square:
            per_pass += _position_network(side**2, width)
        tokenizer = windows * window**2 * 9 * width  # depthwise
    blocks = config.depths[stage]
    return blocks * per_image + tokenizer, blocks * per_pass


def _transformer_layer(config: FasterViTConfig, width: int, tokens: int) -> int:
    linear = tokens * width * (4 * width + 2 * int(width * config.mlp_ratio))
    return linear + 2 * tokens**2 * width


def _position_network(coordinates: int, features: int) -> int:
    return coordinates * _POSITION_HIDDEN * (2 + features)


def dino_multiply_adds(config: DinoConfig, size: tuple[int, int]) -> dict[str, int]:
    """Counts the multiply-adds of a DINO for one image, without denoising queries.

    A sample of deformable attention takes one for each of its four neighbors and channels.

    Args:
        config: options of the network.
        size: height and width of the image, in pixels.

    Returns:
        Multiply-adds by part: backbone, projections, encoder, selection and decoder.
    """
    backbone = dataclasses.replace(config.backbone, resolution=size)
    widths = [backbone.widths[stage] for stage in config.stages]
    areas = [math.prod(backbone.map_size(stage)) for stage in config.stages]
    last = backbone.map_size(config.stages[-1])
    areas.append(-(-last[0] // 2) * -(-last[1] // 2))
    tokens, queries, hidden = sum(areas), config.queries, config.hidden

    def deformable(count: int) -> int:
        places = config.heads * config.levels * config.points
        of_queries = hidden * (3 * places + hidden) + 4 * config.levels * config.points * hidden
        return tokens * hidden**2 + count * of_queries

    feedforward = 2 * hidden * config.feedforward
    class_head, box_head = hidden * config.num_classes, hidden * (2 * hidden + 4)
    projections = sum(area * width * hidden for area, width in zip(areas, widths, strict=False))
    self_attention = queries * 4 * hidden**2 + 2 * queries**2 * hidden
    # The box head sees a layer twice: for its boxes, and for the references of the next layer.
    heads = 3 * hidden**2 + class_head + 2 * box_head
    decoder_layer = self_attention + deformable(queries) + queries * (feedforward + heads)
    of_backbone = multiply_adds(backbone)
    return {
        "backbone": of_backbone.per_image + of_backbone.per_pass,
        "projections": projections + areas[-1] * 9 * widths[-1] * hidden,
        "encoder": config.encoder_layers * (deformable(tokens) + tokens * feedforward),
        "selection": tokens * (hidden**2 + class_head) + queries * box_head,
        "decoder": config.decoder_layers * decoder_layer - queries * box_head,
    }
