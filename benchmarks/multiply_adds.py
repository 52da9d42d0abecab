"""Multiply-adds of a network, counted in a traced program and by hand.

A multiply-add is one product and one sum inside a matrix product or a convolution; elementwise
work does not count.
"""

import math
from typing import NamedTuple

from fastervit_jax.models import FasterViTConfig

_HIDDEN = 512  # width inside the position networks


def traced(jaxpr) -> int:
    """Multiply-adds of all matrix products and convolutions in a program.

    Args:
        jaxpr: of `jax.make_jaxpr(…)(…).jaxpr`. Loops count once.
    """
    total = 0
    for equation in jaxpr.eqns:
        shapes = [variable.aval.shape for variable in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(shapes[0][axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        elif equation.primitive.name == "conv_general_dilated":
            # Kernels are HWIO, I being the channels of a group.
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[1][:3])
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += traced(inner)
    return total


class Part(NamedTuple):
    """A part of the network: its multiply-adds, and how many equal ones there are."""

    name: str
    multiply_adds: int
    number: int = 1


def by_hand(config: FasterViTConfig, batch: int, *, deployed: bool = False) -> list[Part]:
    """Multiply-adds of a forward pass at the configuration's resolution, part after part.

    Deployed networks have no position networks. Names are those of the modules.
    """
    sizes, widths = [config.map_size(stage) for stage in range(4)], config.widths
    areas = [batch * height * width for height, width in sizes]
    height, width = config.resolution
    inner = batch * math.ceil(height / 2) * math.ceil(width / 2)
    stem = 9 * inner * config.in_chans * config.in_dim + 9 * areas[0] * config.in_dim * widths[0]
    parts = [Part("stem", stem)]
    for stage in range(4):
        if stage < 2:
            block = 2 * 9 * areas[stage] * widths[stage] ** 2
            parts.append(Part(f"stages.{stage}.block", block, config.depths[stage]))
        else:
            parts += _attention_stage(config, stage, batch, deployed)
        if stage < 3:
            down = 9 * areas[stage + 1] * widths[stage] * widths[stage + 1]
            parts.append(Part(f"downsamples.{stage}", down))
    return [*parts, Part("head", batch * widths[3] * config.num_classes)]


def _attention_stage(config: FasterViTConfig, stage: int, batch: int, deployed: bool) -> list[Part]:
    width, window = config.widths[stage], config.window_size[stage]
    _, grid, hierarchical = config.geometry(stage)
    number = grid[0] * grid[1]
    carriers = config.ct_size**2 if hierarchical else 0
    heads, depth, name = config.num_heads[stage], config.depths[stage], f"stages.{stage}"

    def attention(sequences: int, tokens: int) -> int:
        return sequences * tokens * width * (4 * width + 2 * tokens)

    def mlp(tokens: int) -> int:
        return 2 * tokens * width * int(width * config.mlp_ratio)

    def positions(side: int, embedding: bool) -> int:
        bias = (2 * side - 1) ** 2 * _HIDDEN * (2 + heads)
        return 0 if deployed else bias + (side**2 * _HIDDEN * (2 + width) if embedding else 0)

    sequences, tokens = batch * number, window**2 + carriers
    parts = [
        Part(f"{name}.window.attention", attention(sequences, tokens), depth),
        Part(f"{name}.window.mlp", mlp(sequences * tokens), depth),
        Part(f"{name}.window.positions", positions(window, True), depth),
    ]
    if not hierarchical or not depth:
        return parts
    per_image = number * carriers
    square = config.geometry(stage).square
    tokenizer = batch * number * window**2 * 9 * width
    return [
        Part(f"{name}.tokenizer", tokenizer),
        Part(f"{name}.carrier.attention", attention(batch, per_image), depth),
        Part(f"{name}.carrier.mlp", mlp(batch * per_image), depth),
        Part(f"{name}.carrier.positions", positions(math.isqrt(per_image), square), depth),
        *parts,
    ]


def total(parts: list[Part]) -> int:
    """Of all parts."""
    return sum(part.multiply_adds * part.number for part in parts)
