"""The two kinds of stages: convolution blocks on maps, attention blocks on windows."""

import jax
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.conv_block import ConvBlock
from fastervit_jax.models.hierarchical_attention import (
    CarrierTokenizer,
    HierarchicalAttentionBlock,
)
from fastervit_jax.models.windows import map_to_windows, pad_to_windows, windows_to_map


class ConvStage(nnx.Module):
    """Convolution blocks, one after the other: [N, H, W, C] → same.

    Attributes:
        remat: in training, keep what enters each block and compute the rest again for the gradient:
            less memory, more work, the same result. `stage.set_attributes(remat=True)` sets it.
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        self.remat = False
        self.blocks = nnx.List(
            ConvBlock(config, stage, block, dtype=dtype, rngs=rngs)
            for block in range(config.depths[stage])
        )

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        def run(block, x, rngs):
            return block(x, rngs)

        run = nnx.remat(run) if self.remat else run
        for block in self.blocks:
            x = run(block, x, rngs)
        return x


class AttentionStage(nnx.Module):
    """Hierarchical attention on the windows of a map: [N, H, W, C] → same.

    In an any-resolution network the map is padded with zeros up to whole windows before the carrier
    tokens are made, unmasked, and cropped at the end.

    Attributes:
        remat: as of `ConvStage`.
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        self.remat = False
        self.number = stage + 1
        self.window_size = config.window_size[stage]
        self.any_res = config.any_res
        self.resolution = config.resolution
        self.geometry = config.geometry(stage)
        self.carrier_tokenizer = (
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

        carriers = self.carrier_tokenizer(x) if self.geometry.hierarchical else None
        windows = map_to_windows(x, self.window_size)

        def run(block, windows, carriers, rngs):
            return block(windows, carriers, grid, rngs)

        run = nnx.remat(run) if self.remat else run
        for block in self.blocks:
            windows, carriers = run(block, windows, carriers, rngs)
        return windows_to_map(windows, self.window_size, grid)[:, :height, :width]

    def rebuild_for(self, config: FasterViTConfig):
        """Becomes the stage of a network for images of another size, and drops unused weights.

        Raises:
            ValueError: at that size the stage would need weights that it does not have.
        """
        self.any_res = config.any_res
        self.resolution = config.resolution
        self.geometry = config.geometry(self.number - 1)
        hierarchical = self.geometry.hierarchical
        if not config.has_carrier_tokenizer(self.number - 1):
            self.carrier_tokenizer = None
        for block in self.blocks:
            if not hierarchical:
                block.carrier_layer = None
            if not hierarchical or not self.geometry.square:
                block.carrier_position = None
        self._check_weights()

    def _check_weights(self):
        """Raises ValueError where the stage has no weights for what its geometry asks for."""
        if not self.geometry.hierarchical:
            return
        height, width = self.resolution
        rows, columns = self.geometry.window_grid
        explanation = (
            f"At {height}×{width}, stage {self.number} has {rows}×{columns} windows, and the model "
            f"has no weights for"
        )
        if any(block.carrier_layer is None for block in self.blocks):
            raise ValueError(
                f"{explanation} their carrier tokens: it was built for a size with one window."
            )
        if self.geometry.square and any(block.carrier_position is None for block in self.blocks):
            raise ValueError(
                f"{explanation} the positions of their carrier tokens, which only square grids of "
                f"windows have: it was built for a grid that is not square."
            )

    def _check_map(self, x: jax.Array):
        """Raises ValueError where windows or carrier tokens do not fit the map."""
        height, width = x.shape[1:3]
        window = self.window_size
        remedy = (
            f"This model is built for images of {self.resolution[0]}×{self.resolution[1]}: resize "
            f"the image, or use model.at_resolution((height, width))."
        )
        if not self.any_res and (height % window or width % window):
            raise ValueError(
                f"The image gives stage {self.number} a map of {height}×{width}, which windows of "
                f"{window}×{window} do not tile. {remedy}"
            )
        grid = (-(-height // window), -(-width // window))
        if self.geometry.hierarchical and grid != self.geometry.window_grid:
            rows, columns = self.geometry.window_grid
            raise ValueError(
                f"The image gives stage {self.number} a map of {height}×{width}, "
                f"{grid[0]}×{grid[1]} windows, but its carrier tokens are planned for "
                f"{rows}×{columns} windows. {remedy}"
            )
