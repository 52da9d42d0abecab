"""What a FasterViT cannot be: options that make no network, each refused with a sentence."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastervit_jax.models.config import FasterViTConfig


def check_options(config: FasterViTConfig) -> None:
    """Raises ValueError for an option of the wrong type or range, whatever the other options."""
    for name in ("depths", "num_heads", "window_size", "hat"):
        _check_length(config, name, 4, "a value for each of the four stages")
    _check_length(config, "resolution", 2, "one side or (height, width), in pixels")

    _check_whole_numbers("depths", config.depths, least=0)
    for name in ("num_heads", "window_size", "resolution"):
        _check_whole_numbers(name, getattr(config, name), least=1)
    for name in ("dim", "in_dim", "ct_size", "in_chans"):
        _check_whole_numbers(name, (getattr(config, name),), least=1)
    _check_whole_numbers("num_classes", (config.num_classes,), least=0)

    for flag in config.hat:
        _check_flag("hat", flag)
    for name in ("any_res", "qkv_bias", "layer_norm_last", "do_propagation"):
        _check_flag(name, getattr(config, name))

    _check_number("mlp_ratio", config.mlp_ratio)
    if int(config.mlp_ratio * config.dim) < 1:
        raise ValueError(
            f"mlp_ratio={config.mlp_ratio} leaves the MLPs no hidden channels: 4 is usual."
        )
    for name in ("qk_scale", "layer_scale", "layer_scale_conv"):
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name))
    for name in ("drop_path_rate", "drop_rate", "attn_drop_rate"):
        rate = getattr(config, name)
        _check_number(name, rate)
        if not 0 <= rate < 1:
            raise ValueError(f"{name}={rate} is not a probability: give 0 ≤ {name} < 1.")

    height, width = config.resolution
    if not config.any_res and height != width:
        raise ValueError(
            f"resolution={height}×{width} is not square, but this network is: use an any_res one, "
            f"which takes any height and width."
        )


def check_attention_stage(config: FasterViTConfig, stage: int) -> None:
    """Raises ValueError where heads, windows or carrier tokens do not fit the stage's map."""
    number, width = stage + 1, config.widths[stage]
    heads, window = config.num_heads[stage], config.window_size[stage]
    if width % heads:
        raise ValueError(
            f"Stage {number} has width {width} (dim={config.dim} × {2**stage}), which its "
            f"num_heads={heads} do not divide: choose dim or num_heads so that they do."
        )
    if window < 2:
        raise ValueError(
            f"window_size={window} in stage {number}: relative positions need 2 or more."
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
        f"resolution={resolution} gives stage {number} a map of {side}×{side}, which windows of "
        f"{window}×{window} do not tile: use a multiple of {unit} ({nearest}), another "
        f"window_size, or an any_res network, which pads."
    )


def _check_carrier_tokens(
    config: FasterViTConfig, number: int, window: int, grid: tuple[int, int]
) -> None:
    if config.ct_size > window:
        raise ValueError(
            f"ct_size={config.ct_size} asks for more carrier tokens than the {window}×{window} "
            f"windows of stage {number} have positions: use ct_size ≤ {window}."
        )
    if math.isqrt(config.ct_size**2 * grid[0] * grid[1]) < 2:
        raise ValueError(
            f"ct_size={config.ct_size} leaves stage {number}, with {grid[0]}×{grid[1]} windows, "
            f"fewer than the 4 carrier tokens that relative positions need: use ct_size=2, or "
            f"another resolution."
        )


def _check_length(config: FasterViTConfig, name: str, length: int, meaning: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, tuple) or len(value) != length:
        raise ValueError(f"{name}={value!r} should be {meaning}.")


def _check_whole_numbers(name: str, values: tuple, *, least: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} has {value!r}: give whole numbers of {least} or more.")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} should be a finite number.")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} has {value!r}: give True or False.")
