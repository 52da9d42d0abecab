"""Hierarchical attention (paper, section 3.2 and figure 4).

A map is cut into windows. Every window owns a few carrier tokens, which summarize it. Each block
has two steps:

1. The carrier tokens of all windows attend to each other. This is how information crosses windows.
2. Each window's tokens and its own carrier tokens attend to each other.

The cost of the second step, which is most of it, grows linearly with the number of windows.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import DepthwiseConv3x3, full_precision
from fastervit_jax.models.position import PositionEmbedding
from fastervit_jax.models.transformer import TransformerLayer
from fastervit_jax.models.windows import (
    carriers_to_map,
    map_to_carriers,
    map_to_windows,
)


class CarrierTokenizer(nnx.Module):
    """Makes carrier tokens from a map: a depthwise convolution, then an average pool.

    [N, H, W, C], whole windows → [N, windows·ct², C], by window (the reference's
    `TokenInitializer`).
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        width = config.widths[stage]
        self.ct_size = config.ct_size
        self.window_size = config.window_size[stage]
        self.dtype = dtype
        self.convolution = DepthwiseConv3x3(width, dtype=dtype, rngs=rngs)

    @jax.named_scope("tokenizer")
    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        stride = self.window_size // self.ct_size
        kernel = (self._pool_size(height, stride), self._pool_size(width, stride))
        x = self.convolution(x).astype(full_precision(self.dtype))
        pooled = nnx.avg_pool(x, window_shape=kernel, strides=(stride, stride)).astype(self.dtype)
        return map_to_windows(pooled, self.ct_size).reshape(n, -1, channels)

    def _pool_size(self, side: int, stride: int) -> int:
        """Side of the pools. One begins every `stride` positions, and the last ends with the map.

        The pools overlap where ct_size does not divide the window size.
        """
        pools = side // self.window_size * self.ct_size
        return side - (pools - 1) * stride


class HierarchicalAttentionBlock(nnx.Module):
    """One block of an attention stage (the reference's `HAT`).

    In a stage without carrier tokens, or where one window covers the map, this is plain window
    attention.
    """

    def __init__(self, config: FasterViTConfig, stage: int, block: int, *, dtype, rngs: nnx.Rngs):
        width, heads = config.widths[stage], config.num_heads[stage]
        geometry = config.geometry(stage)
        rate = config.drop_path_rates(stage)[block]

        self.window_size = config.window_size[stage]
        self.ct_size = config.ct_size
        is_last = block == config.depths[stage] - 1
        self.propagates = is_last and config.do_propagation

        # A layer, or None in a stage without carrier tokens.
        self.carrier_position: Any
        self.carrier_layer: Any
        position = dict(by_tokens=config.position_by_tokens, dtype=dtype, rngs=rngs)
        self.window_position = PositionEmbedding(width, **position)
        self.window_layer = TransformerLayer(config, width, heads, rate, dtype=dtype, rngs=rngs)
        self.carrier_position = (
            PositionEmbedding(width, **position)
            if geometry.hierarchical and geometry.square
            else None
        )
        self.carrier_layer = (
            TransformerLayer(config, width, heads, rate, dtype=dtype, rngs=rngs)
            if geometry.hierarchical
            else None
        )

    def __call__(
        self,
        windows: jax.Array,
        carriers: jax.Array | None,
        grid: tuple[int, int],
        rngs: nnx.Rngs | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs the block.

        Args:
            windows: [N·windows, side², C].
            carriers: carrier tokens [N, windows·ct², C], by window; or None.
            grid: (rows, columns) of windows.
            rngs: the source of randomness for drop path and dropout.

        Returns:
            Windows and carrier tokens, of the same shapes.
        """
        windows = windows + self.window_position(self.window_size).astype(windows.dtype)
        if carriers is None:
            return self.window_layer(windows, self.window_size, rngs), None

        carriers = self._exchange_between_windows(carriers, grid, rngs)
        per_window = carriers.reshape(windows.shape[0], self.ct_size**2, -1)
        tokens = jnp.concatenate([per_window, windows], axis=1)
        tokens = self.window_layer(tokens, self.window_size, rngs)
        per_window, windows = jnp.split(tokens, [self.ct_size**2], axis=1)
        if self.propagates:
            windows = windows + self._propagated(per_window)
        return windows, per_window.reshape(carriers.shape)

    def keep_paths(self, keep: jax.Array) -> None:
        """Sets the probability with which each of the block's branches is kept."""
        for layer in (self.window_layer, self.carrier_layer):
            if layer is not None:
                layer.drop_path.keep = nnx.data(keep)

    @jax.named_scope("carriers")
    def _exchange_between_windows(
        self, carriers: jax.Array, grid: tuple[int, int], rngs: nnx.Rngs | None
    ) -> jax.Array:
        """Lets the carrier tokens of all windows attend to each other."""
        x = carriers_to_map(carriers, self.ct_size, grid)
        # Side of the carrier map; of the largest square with as many tokens if it is not square.
        side = math.isqrt(x.shape[1])
        if grid[0] == grid[1]:
            x = x + self.carrier_position(side).astype(x.dtype)
        x = self.carrier_layer(x, side, rngs)
        # The reference exchanges height and width in this step alone. On a square grid nothing
        # changes; on other grids, being faithful means the same exchange.
        return map_to_carriers(x, self.ct_size, grid[::-1])

    def _propagated(self, per_window: jax.Array) -> jax.Array:
        """Carrier tokens [N·windows, ct², C], upsampled to their window: [N·windows, side², C]."""
        scale = self.carrier_layer.attention_scale
        x = per_window if scale is None else scale(per_window)
        x = x.reshape(-1, self.ct_size, self.ct_size, x.shape[-1])
        # Nearest neighbor with torch's float32 index. No gather, because TPUs are slow at it.
        ratio = np.float32(self.ct_size / self.window_size)
        near = np.floor(np.arange(self.window_size, dtype=np.float32) * ratio).astype(int)
        times = np.bincount(near, minlength=self.ct_size)
        for axis in (1, 2):
            parts = jnp.split(x, self.ct_size, axis)
            x = jnp.concatenate(
                [jnp.repeat(part, n, axis) for part, n in zip(parts, times, strict=True)], axis
            )
        return x.reshape(-1, self.window_size**2, x.shape[-1])
