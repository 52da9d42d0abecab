"""Draws attention: what each region of an image attends to, layer by layer.

    fastervit visualize IMAGE --weights=PATH --output=carriers.png
    fastervit visualize IMAGE --weights=PATH --output=window.png --pixel=ROW,COLUMN

The first command draws, for each layer of a hierarchical stage, what the carrier tokens of each
region (window) attend to. The second draws what the position around a pixel attends to within its
window, and how much of its attention goes to the carrier tokens of the window.

The numbers are the attention weights that the network itself computes (`attention_weights`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx

from fastervit_jax.commands.flags import define_weights_flags
from fastervit_jax.models import FasterViT
from fastervit_jax.models.config import STRIDES
from fastervit_jax.models.transformer import Attention
from fastervit_jax.prediction import normalized, preprocessed

_MOST_REGIONS = 9


@dataclasses.dataclass(frozen=True)
class LayerAttention:
    """Attention weights of one block for one image.

    Attributes:
        stage: 3 or 4.
        block: number of the block in its stage, from 1.
        grid: windows that cover the stage's map, (rows, columns), padding included.
        window_size: side of a window, in positions of the map.
        ct_size: side of a window's square of carrier tokens; 0 where there are none.
        windows: attention of the tokens of each window, carrier tokens first:
            [rows, columns, heads, ct² + side² queries, ct² + side² keys]. The last axis sums to 1.
        carriers: attention of the carrier tokens, as a map of rows·ct × columns·ct tokens:
            [heads, rows·ct, columns·ct, rows·ct, columns·ct]. The last two axes sum to 1. None
            where there are no carrier tokens.
    """

    stage: int
    block: int
    grid: tuple[int, int]
    window_size: int
    ct_size: int
    windows: np.ndarray
    carriers: np.ndarray | None

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the map."""
        return STRIDES[self.stage - 1]

    def region_map(self, row: int, column: int) -> np.ndarray:
        """What one region's carrier tokens attend to: [rows·ct, columns·ct], sums to 1.

        The mean over heads, and over the region's carrier tokens.
        """
        if self.carriers is None:
            raise ValueError(f"Stage {self.stage} has no carrier tokens at this size.")
        size = self.ct_size
        rows = slice(row * size, (row + 1) * size)
        columns = slice(column * size, (column + 1) * size)
        return self.carriers[:, rows, columns].mean(axis=(0, 1, 2))

    def pixel_map(self, row: int, column: int) -> "PixelAttention":
        """What the position around a pixel of the network's input attends to (mean over heads)."""
        y, x = row // self.stride, column // self.stride
        side, first = self.window_size, self.ct_size**2
        window = (y // side, x // side)
        token = first + y % side * side + x % side
        weights = self.windows[window].mean(axis=0)[token]
        return PixelAttention(
            window=window,
            position=(y % side, x % side),
            tokens=weights[first:].reshape(side, side),
            carriers=weights[:first].reshape(self.ct_size, self.ct_size),
        )


@dataclasses.dataclass(frozen=True)
class PixelAttention:
    """What one position attends to; `tokens` and `carriers` together sum to 1.

    Attributes:
        window: (row, column) of its window.
        position: its (row, column) in the window.
        tokens: of the window's positions, [side, side].
        carriers: of the window's carrier tokens, [ct, ct].
    """

    window: tuple[int, int]
    position: tuple[int, int]
    tokens: np.ndarray
    carriers: np.ndarray


class _Recorder(nnx.Module):
    """Takes the place of the dropout of attention weights, and records them.

    The weights arrive before softmax's division.
    """

    active = True  # the attention then computes weights, where a kernel would not show them

    def __init__(self):
        self.weights = nnx.data(None)

    def __call__(self, exponentials: jax.Array, *, rngs=None) -> jax.Array:
        self.weights = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return exponentials


def attention_weights(model: FasterViT, image: jax.Array) -> list[LayerAttention]:
    """The attention weights of every block, as the network computes them for one image.

    Args:
        model: any; it is used in evaluation mode and not changed.
        image: normalised, [height, width, channels].
    """
    if not model.deployed:
        model = nnx.view(model, deterministic=True, use_running_average=True)
    else:
        model = nnx.clone(model, variables=False)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Attention):
            module.weights_dropout = _Recorder()  # type: ignore[assignment]
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, image):
        model = nnx.merge(graph, state)
        model(image[None])
        return [
            (
                block.window_layer.attention.weights_dropout.weights,
                None
                if block.carrier_layer is None
                else block.carrier_layer.attention.weights_dropout.weights,
            )
            for stage in model.stages[2:]
            for block in stage.blocks
        ]

    recorded = iter(jax.device_get(run(state, image)))
    layers = []
    for stage in model.stages[2:]:
        for block in range(len(stage.blocks)):
            windows, carriers = next(recorded)
            layers.append(_layer(model, stage, block, image.shape[:2], windows, carriers))
    return layers


def _layer(model, stage, block, image_size, windows, carriers) -> LayerAttention:
    stride, side = STRIDES[stage.number - 1], stage.window_size
    rows, columns = (-(-length // (stride * side)) for length in image_size)
    ct_size = 0 if carriers is None else model.config.ct_size
    if carriers is not None:
        picture = (rows * ct_size, columns * ct_size)
        carriers = carriers[0].reshape(-1, *picture, *picture)
    return LayerAttention(
        stage=stage.number,
        block=block + 1,
        grid=(rows, columns),
        window_size=side,
        ct_size=ct_size,
        windows=windows.reshape(rows, columns, *windows.shape[1:]),
        carriers=carriers,
    )


def draw_carriers(layers: Sequence[LayerAttention], pixels: np.ndarray, path: str | Path) -> None:
    """Draws what the carrier tokens of each region attend to: a row per layer, a column per region.

    Of more than nine regions, nine evenly spread ones are shown.

    Args:
        layers: from `attention_weights`; layers without carrier tokens are ignored.
        pixels: the image as the network saw it, uint8 [height, width, 3].
        path: the PNG to write.

    Raises:
        ValueError: no layer has carrier tokens.
    """
    layers = [layer for layer in layers if layer.carriers is not None]
    if not layers:
        raise ValueError(
            "The network has no carrier tokens at this size. Use --pixel to draw its window "
            "attention."
        )
    panels = []
    for layer in layers:
        side = layer.window_size * layer.stride
        covered = (layer.grid[0] * side, layer.grid[1] * side)
        for row, column in _chosen_regions(layer.grid):
            heat = layer.region_map(row, column)
            frame = (row * side, column * side, side)
            panels.append(_Panel(_name(layer), heat * heat.size, (0, 0), covered, frame))
    _draw(
        panels,
        pixels,
        columns=len(panels) // len(layers),
        title="What the carrier tokens of the framed region attend to, layer by layer",
        path=path,
    )


def draw_pixel(
    layers: Sequence[LayerAttention], pixels: np.ndarray, pixel: tuple[int, int], path: str | Path
) -> None:
    """Draws what the position around a pixel attends to within its window, layer by layer.

    Args:
        layers: from `attention_weights`.
        pixels: the image as the network saw it, uint8 [height, width, 3].
        pixel: (row, column) in that image.
        path: the PNG to write.

    Raises:
        ValueError: the pixel lies outside.
    """
    height, width = pixels.shape[:2]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"Invalid pixel {pixel}: expected one inside the image, {height}×{width}.")
    panels = []
    for layer in layers:
        one = layer.pixel_map(*pixel)
        side = layer.window_size * layer.stride
        top, left = one.window[0] * side, one.window[1] * side
        row, column = one.position
        name = _name(layer)
        if one.carriers.size:
            name += f"; {one.carriers.sum():.2%} to carriers"
        heat = one.tokens * (one.tokens.size + one.carriers.size)
        frame = (top + row * layer.stride, left + column * layer.stride, layer.stride)
        panels.append(_Panel(name, heat, (top, left), (side, side), frame))
    _draw(
        panels,
        pixels,
        columns=min(len(layers), 6),
        title="What the framed position attends to in its window, layer by layer",
        path=path,
    )


class _Panel(NamedTuple):
    """An image with a map over it.

    Attributes:
        name: title.
        heat: attention; 1 is the value of evenly spread attention.
        corner: (top, left) of the map, in pixels.
        size: (height, width) of the map, in pixels.
        frame: (top, left, side) of the square that attends, in pixels.
    """

    name: str
    heat: np.ndarray
    corner: tuple[int, int]
    size: tuple[int, int]
    frame: tuple[int, int, int]


def _name(layer: LayerAttention) -> str:
    return f"stage {layer.stage}, layer {layer.block}"


def _chosen_regions(grid: tuple[int, int]) -> list[tuple[int, int]]:
    regions = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    if len(regions) <= _MOST_REGIONS:
        return regions
    chosen = np.linspace(0, len(regions) - 1, _MOST_REGIONS).round().astype(int)
    return [regions[number] for number in chosen]


def _draw(
    panels: Sequence[_Panel], pixels: np.ndarray, *, columns: int, title: str, path: str | Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(panels) // columns)
    lowest = min(panel.heat.min() for panel in panels)
    highest = max(panel.heat.max() for panel in panels)
    scale = plt.cm.ScalarMappable(plt.Normalize(lowest, highest), "inferno")
    aspect = pixels.shape[0] / pixels.shape[1]
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(2 * columns, 5) + 1.2, (2 * aspect + 0.25) * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.imshow(_tinted(pixels, panel, scale))
        axis.set_title(panel.name, fontsize=8)
        top, left, side = panel.frame
        square = plt.Rectangle((left - 0.5, top - 0.5), side, side)
        square.set(fill=False, edgecolor="cyan", linewidth=2)
        axis.add_patch(square)
    figure.suptitle(title)
    figure.colorbar(scale, ax=axes, shrink=0.6, label="attention; 1 is evenly spread")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tinted(pixels: np.ndarray, panel: _Panel, scale) -> np.ndarray:
    """The image in gray, colored by the panel's map."""
    gray = pixels.mean(axis=-1, keepdims=True) / 255
    picture = np.repeat(0.15 + 0.6 * gray, 3, axis=-1)
    (top, left), (height, width) = panel.corner, panel.size
    part = picture[top : top + height, left : left + width]
    rows = np.arange(part.shape[0]) * panel.heat.shape[0] // height
    columns = np.arange(part.shape[1]) * panel.heat.shape[1] // width
    colors = scale.to_rgba(panel.heat[np.ix_(rows, columns)])[..., :3]
    part[:] = colors * (0.45 + 0.55 * gray[top : top + height, left : left + width])
    return picture


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit visualize`, and returns what runs it."""
    open_model = define_weights_flags()
    output = flags.DEFINE_string("output", None, "PNG file to write.", required=True)
    pixel = flags.DEFINE_list(
        "pixel", None, "ROW,COLUMN in the network's input: draw the window attention around it."
    )

    def main(arguments: list[str]) -> None:
        if len(arguments) != 2:
            raise ValueError(
                f"Invalid arguments: expected one image, got {len(arguments) - 1}. "
                "Run fastervit visualize IMAGE --weights=PATH --output=FILE.png"
            )
        model = open_model()
        pixels = preprocessed(model, arguments[1])
        layers = attention_weights(model, normalized(model, pixels))
        if pixel.value is None:
            draw_carriers(layers, pixels, output.value)
            return
        try:
            row, column = (int(text) for text in pixel.value)
        except ValueError:
            raise ValueError(
                f"Invalid --pixel={','.join(pixel.value)}: expected ROW,COLUMN."
            ) from None
        draw_pixel(layers, pixels, (row, column), output.value)

    return main
