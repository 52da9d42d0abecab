"""What defines a FasterViT: its options, and the sizes that follow from them.

The options are those of the official constructor (`fastervit.models.FasterViT`), by the same names.
"""

import dataclasses
import math
from numbers import Integral, Real
from typing import Any, NamedTuple

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
        pad_all_stages: whether the convolution stages are padded to whole windows too, and the size
            of the images is free at every call (the backbone of the official DINO); needs any_res.
        position_by_tokens: whether position embeddings divide coordinates by half the number of a
            window's tokens instead of half its side (the backbone of the official DINO).
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
    pad_all_stages: bool = False
    position_by_tokens: bool = False
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
        self._normalize()
        _check_options(self)
        for stage in ATTENTION_STAGES:
            if self.depths[stage]:
                _check_attention_stage(self, stage)

    @property
    def backbone(self) -> "FasterViTConfig":
        """These options. Networks of other tasks have those of their FasterViT under this name."""
        return self

    @property
    def class_modules(self) -> tuple[str, ...]:
        """Modules whose arrays depend on the classes."""
        return ("head",)

    def options(self) -> dict[str, Any]:
        """All options by name."""
        return dataclasses.asdict(self)

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

    def map_size(self, stage: int) -> tuple[int, int]:
        """Positions of a stage's map: every stride-2 convolution pads, so halving rounds up."""
        height, width = self.resolution
        return math.ceil(height / STRIDES[stage]), math.ceil(width / STRIDES[stage])

    def geometry(self, stage: int) -> StageGeometry:
        """Sizes of an attention stage, for images of `resolution`.

        The official code plans windows on a map whose sides are rounded *down*, but its
        convolutions round up. Where it plans a single window, it has no carrier tokens, even if
        the real map holds more windows (any_res at 120×120). Where it plans several windows, but
        not those of the real map (225×225), it fails. Here the real map counts, as in the official
        network built for sides rounded up to multiples of 32.
        """
        window = self.window_size[stage]
        size = self.map_size(stage)
        grid = (math.ceil(size[0] / window), math.ceil(size[1] / window))
        one_window = max(grid) == 1 or self._planned_grid(stage) == (1, 1)
        return StageGeometry(size, grid, self._marked(stage) and not one_window)

    def _planned_grid(self, stage: int) -> tuple[int, ...]:
        """Windows that the official code plans for a stage: on a map rounded down."""
        window = self.window_size[stage]
        sides = (side // STRIDES[stage] for side in self.resolution)
        return tuple(math.ceil(side / window) if self.any_res else side // window for side in sides)

    def has_carrier_tokenizer(self, stage: int) -> bool:
        """Whether a stage owns the convolution that makes carrier tokens.

        The any-resolution network owns it in every stage marked in `hat`, even where one window
        covers the map and it goes unused.
        """
        if not self.depths[stage] or not self._marked(stage):
            return False
        return self.any_res or self.geometry(stage).hierarchical

    def _marked(self, stage: int) -> bool:
        """Whether a stage is marked in `hat`."""
        return self.hat is None or bool(self.hat[stage])

    def _normalize(self):
        """Accepts lists for tuples, one number for a square resolution, and None for `hat`."""
        if self.hat is None:
            object.__setattr__(self, "hat", (True,) * 4)
        if not isinstance(self.resolution, (list, tuple)):
            object.__setattr__(self, "resolution", (self.resolution, self.resolution))
        for name in ("depths", "num_heads", "window_size", "resolution", "hat"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))


def _check_options(config: FasterViTConfig) -> None:
    """Raises ValueError for an option of the wrong type or range, whatever the other options."""
    for name in ("depths", "num_heads", "window_size", "hat"):
        _check_length(config, name, 4, "a value for each of the four stages")
    _check_length(config, "resolution", 2, "one side or (height, width), in pixels")

    # A network is made block by block: with a damaged number this would not end.
    _check_whole_numbers("depths", config.depths, least=0, most=1000)
    for name in ("num_heads", "window_size", "resolution"):
        _check_whole_numbers(name, getattr(config, name), least=1)
    for name in ("dim", "in_dim", "ct_size", "in_chans"):
        _check_whole_numbers(name, (getattr(config, name),), least=1)
    _check_whole_numbers("num_classes", (config.num_classes,), least=0)

    for flag in config.hat or ():
        _check_flag("hat", flag)
    for name in (
        "any_res",
        "pad_all_stages",
        "position_by_tokens",
        "qkv_bias",
        "layer_norm_last",
        "do_propagation",
    ):
        _check_flag(name, getattr(config, name))
    if config.pad_all_stages and not config.any_res:
        raise ValueError("Invalid pad_all_stages=True: expected an any_res network, which pads.")

    _check_number("mlp_ratio", config.mlp_ratio)
    if int(config.mlp_ratio * config.dim) < 1 or config.mlp_ratio > 1000:
        raise ValueError(
            f"Invalid mlp_ratio={config.mlp_ratio}: expected at least one hidden channel per MLP, "
            f"and at most 1000 (4 is usual)."
        )
    for name in ("qk_scale", "layer_scale", "layer_scale_conv"):
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name))
    for name in ("drop_path_rate", "drop_rate", "attn_drop_rate"):
        rate = getattr(config, name)
        _check_number(name, rate)
        if not 0 <= rate < 1:
            raise ValueError(f"Invalid {name}={rate}: expected a probability, 0 ≤ {name} < 1.")

    height, width = config.resolution
    if not config.any_res and height != width:
        raise ValueError(
            f"Invalid resolution={height}×{width}: expected a square image. An any_res network "
            f"takes any height and width."
        )


def _check_attention_stage(config: FasterViTConfig, stage: int) -> None:
    """Raises ValueError where heads, windows or carrier tokens do not fit the stage's map."""
    number, width = stage + 1, config.widths[stage]
    heads, window = config.num_heads[stage], config.window_size[stage]
    if width % heads:
        raise ValueError(
            f"Invalid num_heads={heads} in stage {number}: must divide its width {width} "
            f"(dim={config.dim} × {2**stage}). Change num_heads or dim."
        )
    if window < 2:
        raise ValueError(
            f"Invalid window_size={window} in stage {number}: expected 2 or more, which relative "
            f"positions need."
        )
    geometry = config.geometry(stage)
    if not config.any_res and geometry.map_size[0] % window:
        raise ValueError(_untiled(config, number, geometry.map_size[0], window))
    if geometry.hierarchical:
        _check_carrier_tokens(config, number, window, geometry.window_grid)


def _untiled(config: FasterViTConfig, number: int, side: int, window: int) -> str:
    resolution = config.resolution[0]
    unit = 2 ** (number + 1) * window
    lower = resolution // unit * unit
    nearest = " or ".join(str(multiple) for multiple in (lower, lower + unit) if multiple)
    return (
        f"Invalid resolution={resolution}: stage {number} gets a map of {side}×{side}, which "
        f"windows of {window}×{window} do not tile. Use a multiple of {unit} ({nearest}), another "
        f"window_size, or an any_res network, which pads."
    )


def _check_carrier_tokens(
    config: FasterViTConfig, number: int, window: int, grid: tuple[int, int]
) -> None:
    if config.ct_size > window:
        raise ValueError(
            f"Invalid ct_size={config.ct_size}: expected at most {window}, the side of the windows "
            f"of stage {number}."
        )
    if math.isqrt(config.ct_size**2 * grid[0] * grid[1]) < 2:
        raise ValueError(
            f"Invalid ct_size={config.ct_size}: stage {number}, with {grid[0]}×{grid[1]} windows, "
            f"gets fewer than 4 carrier tokens, which relative positions need. Use ct_size=2 or "
            f"another resolution."
        )


def _check_length(config: FasterViTConfig, name: str, length: int, meaning: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, tuple) or len(value) != length:
        raise ValueError(f"Invalid {name}={value!r}: expected {meaning}.")


def _check_whole_numbers(name: str, values: tuple, *, least: int, most: int = 10**6) -> None:
    for value in values:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"Invalid value {value!r} in {name}: expected whole numbers of {least} or more."
            )
        if value > most:
            raise ValueError(
                f"Invalid value {str(value)[:40]} in {name}: expected at most {most:,}."
            )


def _check_number(name: str, value: object) -> None:
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not abs(number) < 2**63:  # neither NaN nor a number that no float holds
        raise ValueError(f"Invalid {name}={value!r}: expected a finite number.")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"Invalid value {value!r} in {name}: expected True or False.")
