"""What defines a FasterViT: its options, and the sizes that follow from them.

The options are those of the official constructor (`fastervit.models.FasterViT`), by the same names.
"""

import dataclasses
import math
from typing import NamedTuple

STRIDES = (4, 8, 16, 32)
"""Pixels of the image per position of each stage's map."""

CONVOLUTION_STAGES = (0, 1)
ATTENTION_STAGES = (2, 3)


class StageGeometry(NamedTuple):
    """Sizes of an attention stage, all (height, width).

    Attributes:
        map_size: positions of the map that the stage receives.
        window_grid: how many windows cover it, padding included.
        hierarchical: whether the stage has carrier tokens that attend to each other.
    """

    map_size: tuple[int, int]
    window_grid: tuple[int, int]
    hierarchical: bool

    @property
    def square(self) -> bool:
        """Whether the grid of windows is square: only then do carrier tokens have positions."""
        return self.window_grid[0] == self.window_grid[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FasterViTConfig:
    """Options of one network.

    Attributes:
        depths: blocks of each of the four stages.
        num_heads: attention heads of each stage (those of the convolution stages are unused).
        window_size: side of the attention windows of each stage, in map positions.
        dim: width of the first stage; it doubles at each further one.
        in_dim: width between the two convolutions of the stem.
        resolution: height and width of the images, in pixels.
        any_res: whether maps are padded up to whole windows, so that height and width are free
            (the official `faster_vit_any_res`); otherwise images are square and windows tile them.
        ct_size: side of a window's square of carrier tokens.
        mlp_ratio: hidden width of the MLPs over the width of the tokens.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor on query · key; None means head width ** -0.5.
        layer_scale: initial layer scale of the attention blocks; None means no layer scale.
        layer_scale_conv: the same for the convolution blocks.
        layer_norm_last: whether the last norm is a layer norm instead of a batch norm.
        hat: for each stage, whether its attention is hierarchical; None means all of them.
        do_propagation: whether a hierarchical stage's last block adds its carriers to the map.
        num_classes: width of the head; 0 means no head: the model returns pooled features.
        in_chans: channels of the images.
        drop_path_rate: probability of dropping the last block's branches; it grows linearly from 0.
        drop_rate: dropout after projections and inside MLPs.
        attn_drop_rate: dropout of attention weights.
    """

    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    dim: int
    in_dim: int
    window_size: tuple[int, ...] = (7, 7, 7, 7)
    resolution: tuple[int, int] = (224, 224)
    any_res: bool = False
    ct_size: int = 2
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    layer_scale: float | None = None
    layer_scale_conv: float | None = None
    layer_norm_last: bool = False
    hat: tuple[bool, ...] | None = (False, False, True, False)
    do_propagation: bool = False
    num_classes: int = 1000
    in_chans: int = 3
    drop_path_rate: float = 0.2
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0

    def __post_init__(self):
        self._normalise()
        self._check_options()
        for stage in ATTENTION_STAGES:
            self._check_attention_stage(stage)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's map."""
        return tuple(self.dim * 2**stage for stage in range(4))

    def drop_path_rates(self, stage: int) -> tuple[float, ...]:
        """Drop-path rate of each block of a stage: linear over all blocks of the network."""
        last = sum(self.depths) - 1
        first = sum(self.depths[:stage])
        indices = range(first, first + self.depths[stage])
        return tuple(self.drop_path_rate * index / max(last, 1) for index in indices)

    def map_size(self, stage: int, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Positions of a stage's map, for images of `image_size` (default: `resolution`).

        Every stride-2 convolution pads by one, so halving rounds up. The official code rounds down
        when it plans the windows; wherever it then runs at all, padding makes both equal.
        """
        height, width = image_size or self.resolution
        return math.ceil(height / STRIDES[stage]), math.ceil(width / STRIDES[stage])

    def geometry(self, stage: int) -> StageGeometry:
        """Sizes of an attention stage, as built for `resolution`."""
        window = self.window_size[stage]
        size = self.map_size(stage)
        grid = (math.ceil(size[0] / window), math.ceil(size[1] / window))
        return StageGeometry(size, grid, self.hat[stage] and max(grid) > 1)

    def has_carrier_tokenizer(self, stage: int) -> bool:
        """Whether a stage owns the convolution that makes carrier tokens.

        The any-resolution network owns it in every stage marked in `hat`, even where one window
        covers the map and it goes unused.
        """
        if not self.depths[stage] or not self.hat[stage]:
            return False
        return self.any_res or self.geometry(stage).hierarchical

    def _normalise(self):
        """Accepts lists, and one number for a square resolution."""
        resolution = self.resolution
        if isinstance(resolution, int):
            resolution = (resolution, resolution)
        object.__setattr__(self, "resolution", tuple(resolution))
        object.__setattr__(self, "hat", (True,) * 4 if self.hat is None else tuple(self.hat))
        for name in ("depths", "num_heads", "window_size"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def _check_options(self):
        for name in ("depths", "num_heads", "window_size", "hat"):
            if len(getattr(self, name)) != 4:
                raise ValueError(
                    f"{name}={getattr(self, name)} has {len(getattr(self, name))} entries; "
                    f"FasterViT has four stages: give four."
                )
        for name in ("num_heads", "window_size", "resolution"):
            _check_whole_numbers(name, getattr(self, name), least=1)
        _check_whole_numbers("depths", self.depths, least=0)
        for name, least in (("dim", 1), ("in_dim", 1), ("ct_size", 1), ("in_chans", 1)):
            _check_whole_numbers(name, (getattr(self, name),), least=least)
        _check_whole_numbers("num_classes", (self.num_classes,), least=0)
        for name in ("drop_path_rate", "drop_rate", "attn_drop_rate"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise ValueError(f"{name}={rate} is not a probability: give 0 ≤ {name} < 1.")
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be positive.")
        if len(self.resolution) != 2:
            raise ValueError(
                f"resolution={self.resolution} should be one side or (height, width), in pixels."
            )
        height, width = self.resolution
        if not self.any_res and height != width:
            raise ValueError(
                f"resolution={height}×{width} is not square, but this is a square model: use its "
                f"any_res sibling (such as faster_vit_0_any_res), which takes any height and width."
            )

    def _check_attention_stage(self, stage: int):
        if not self.depths[stage]:
            return
        number, width = stage + 1, self.widths[stage]
        heads, window = self.num_heads[stage], self.window_size[stage]
        if width % heads:
            raise ValueError(
                f"Stage {number} has width {width} (dim={self.dim} × {2**stage}), which its "
                f"num_heads={heads} do not divide: choose dim or num_heads so that they do."
            )
        if window < 2:
            raise ValueError(
                f"window_size={window} in stage {number}: relative positions need 2 or more."
            )
        geometry = self.geometry(stage)
        size = geometry.map_size
        if not self.any_res and size[0] % window:
            unit = STRIDES[stage] * window
            lower = self.resolution[0] // unit * unit
            nearest = ", ".join(str(side) for side in (lower, lower + unit) if side)
            raise ValueError(
                f"resolution={self.resolution[0]} gives stage {number} a map of "
                f"{size[0]}×{size[1]}, which windows of {window} do not tile: use a multiple of "
                f"{unit} (nearest: {nearest}), other window_size, or the any_res sibling, which pads."
            )
        if not geometry.hierarchical:
            return
        if self.ct_size > window:
            raise ValueError(
                f"ct_size={self.ct_size} asks stage {number} for more carrier tokens than its "
                f"windows of {window}×{window} have positions: use ct_size ≤ {window}."
            )
        grid_height, grid_width = geometry.window_grid
        if math.isqrt(self.ct_size**2 * grid_height * grid_width) < 2:
            raise ValueError(
                f"ct_size={self.ct_size} with a grid of {grid_height}×{grid_width} windows leaves "
                f"stage {number} fewer than 4 carrier tokens, for which the network's relative "
                f"positions are undefined: use ct_size=2, or another resolution."
            )


def _check_whole_numbers(name: str, values: tuple, *, least: int):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            shown = values[0] if len(values) == 1 else values
            raise ValueError(f"{name}={shown!r}: give whole numbers of {least} or more.")
