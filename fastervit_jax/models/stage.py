"""The two kinds of stages: convolution blocks on maps, attention blocks on windows."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.conv_block import ConvBlock
from fastervit_jax.models.hierarchical_attention import (
    CarrierTokenizer,
    HierarchicalAttentionBlock,
)
from fastervit_jax.models.pure_model import Arrays
from fastervit_jax.models.scan import run_block, scan_blocks
from fastervit_jax.models.windows import map_to_windows, pad_to_windows, windows_to_map


class ConvStage(nnx.Module):
    """Convolution blocks, one after the other: [N, H, W, C] → same.

    Attributes:
        padding: the map is padded with zeros to a multiple of this, and cropped at the end.
        remat: in training, keep only the input of each block, and compute the rest again for the
            gradient: less memory, more work, the same result.
            `stage.set_attributes(remat=True)` sets it.
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        self.remat = False
        self.padding = config.window_size[stage] if config.pad_all_stages else 1
        self.blocks = nnx.List(
            ConvBlock(config, stage, block, dtype=dtype, rngs=rngs)
            for block in range(config.depths[stage])
        )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        def run(block, x, rngs):
            return block(x, rngs)

        run = nnx.remat(run) if self.remat else run
        _, height, width, _ = x.shape
        x = pad_to_windows(x, self.padding)
        for block in self.blocks:
            x = run(block, x, rngs)
        return x[:, :height, :width]


class AttentionStage(nnx.Module):
    """Hierarchical attention on the windows of a map: [N, H, W, C] → same.

    In an any-resolution network the map is padded with zeros up to whole windows before the carrier
    tokens are made, unmasked, and cropped at the end.

    Attributes:
        remat: as of `ConvStage`.
        scan: run the blocks as one loop over their stacked weights (`models.scan`).
            `stage.set_attributes(scan=True)` sets it.
        gather: in that loop, brings a block's arrays together where they are used
            (`parallel.partition`); None where they are whole.
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        self.remat = False
        self.scan = False
        self.gather: Callable[[Arrays], Arrays] | None = None
        self.number = stage + 1
        self.window_size = config.window_size[stage]
        self.any_res = config.any_res
        self.any_size = config.pad_all_stages
        self.resolution = config.resolution
        self.geometry = config.geometry(stage)
        self.carrier_tokenizer: Any = (
            CarrierTokenizer(config, stage, dtype=dtype, rngs=rngs)
            if config.has_carrier_tokenizer(stage)
            else None
        )
        self.blocks = nnx.List(
            HierarchicalAttentionBlock(config, stage, block, dtype=dtype, rngs=rngs)
            for block in range(config.depths[stage])
        )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        if not self.blocks:
            return x
        self._check_map(x)
        _, height, width, _ = x.shape
        if self.any_res:
            x = pad_to_windows(x, self.window_size)
        grid = (x.shape[1] // self.window_size, x.shape[2] // self.window_size)

        # One window needs no carrier tokens (`FasterViTConfig.geometry`).
        hierarchical = self.geometry.hierarchical and not (self.any_size and max(grid) == 1)
        carriers = self.carrier_tokenizer(x) if hierarchical else None
        windows = map_to_windows(x, self.window_size)

        # One key per block, so that a loop over blocks draws what the blocks draw one by one.
        keys = [None if rngs is None else rngs.dropout() for _ in self.blocks]
        looped = self.looped
        tokens = scan_blocks(
            self.blocks[:looped],
            (windows, carriers),
            grid,
            keys[:looped],
            remat=self.remat,
            gather=self.gather,
        )
        run = nnx.remat(run_block, static_argnums=2) if self.remat else run_block
        for block, key in zip(self.blocks[looped:], keys[looped:], strict=True):
            tokens = run(block, tokens, grid, key)
        windows, _ = tokens
        return windows_to_map(windows, self.window_size, grid)[:, :height, :width]

    @property
    def looped(self) -> int:
        """How many blocks, from the first on, run as one loop: not a last one that propagates."""
        if not self.scan or not self.blocks:
            return 0
        return len(self.blocks) - (self.geometry.hierarchical and self.blocks[-1].propagates)

    def _check_map(self, x: jax.Array):
        """Raises ValueError where windows or carrier tokens do not fit the map."""
        height, width = x.shape[1:3]
        window = self.window_size
        remedy = (
            f"This model is built for images of {self.resolution[0]}×{self.resolution[1]}. Resize "
            f"the image, or use model.at_resolution((height, width))."
        )
        if not self.any_res and (height % window or width % window):
            raise ValueError(
                f"Invalid image size: stage {self.number} gets a map of {height}×{width}, which "
                f"windows of {window}×{window} do not tile. {remedy}"
            )
        grid = (-(-height // window), -(-width // window))
        if not self.any_size and self.geometry.hierarchical and grid != self.geometry.window_grid:
            rows, columns = self.geometry.window_grid
            raise ValueError(
                f"Invalid image size: stage {self.number} gets a map of {height}×{width}, that is "
                f"{grid[0]}×{grid[1]} windows, but its carrier tokens are planned for "
                f"{rows}×{columns} windows. {remedy}"
            )
