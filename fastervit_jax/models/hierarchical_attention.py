"""Hierarchical attention (paper, section 3.2 and figure 4).

A map is cut into windows. Every window owns a few carrier tokens, a summary of it. In each block
the carrier tokens of all windows attend to each other, which is how information crosses windows;
then each window's tokens and its own carrier tokens attend to each other. Cost grows with the
number of windows, not with its square times the tokens.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models.attention import TransformerLayer
from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.models.layers import conv3x3, full_precision
from fastervit_jax.models.position import PositionEmbedding
from fastervit_jax.models.windows import (
    carriers_to_picture,
    map_to_windows,
    picture_to_carriers,
)


class CarrierTokenizer(nnx.Module):
    """Makes carrier tokens from a map: a depthwise convolution, then an average pool.

    The reference's `TokenInitializer`. [N, H, W, C], whole windows → [N, windows·ct², C] by window.
    """

    def __init__(self, config: FasterViTConfig, stage: int, *, dtype, rngs: nnx.Rngs):
        width = config.widths[stage]
        self.ct_size = config.ct_size
        self.grid = config.geometry(stage).window_grid
        self.dtype = dtype
        self.convolution = conv3x3(width, width, groups=width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        n, height, width, channels = x.shape
        pooled_size = (self.grid[0] * self.ct_size, self.grid[1] * self.ct_size)
        stride = (height // pooled_size[0], width // pooled_size[1])
        # The last pool ends with the map; where strides do not divide it, pools overlap.
        kernel = (
            height - (pooled_size[0] - 1) * stride[0],
            width - (pooled_size[1] - 1) * stride[1],
        )
        x = self.convolution(x).astype(full_precision(self.dtype))
        pooled = nnx.avg_pool(x, kernel, strides=stride).astype(self.dtype)
        return map_to_windows(pooled, self.ct_size).reshape(n, -1, channels)


class HierarchicalAttentionBlock(nnx.Module):
    """One block of an attention stage (the reference's `HAT`).

    Where the stage is not hierarchical, or one window covers the map, this is window attention.
    """

    def __init__(self, config: FasterViTConfig, stage: int, block: int, *, dtype, rngs: nnx.Rngs):
        width, heads = config.widths[stage], config.num_heads[stage]
        window = config.window_size[stage]
        geometry = config.geometry(stage)
        rate = config.drop_path_rates(stage)[block]

        self.window_size = window
        self.ct_size = config.ct_size
        self.grid = geometry.window_grid
        self.hierarchical = geometry.hierarchical
        is_last = block == config.depths[stage] - 1
        self.propagates = geometry.hierarchical and is_last and config.do_propagation

        self.window_position = PositionEmbedding(window, width, dtype=dtype, rngs=rngs)
        self.window_layer = TransformerLayer(
            config, width, heads, window, rate, dtype=dtype, rngs=rngs
        )
        # The side of the carriers' picture, or of the largest square in it where it is not one.
        side = math.isqrt(self.ct_size**2 * self.grid[0] * self.grid[1])
        self.carrier_position = (
            PositionEmbedding(side, width, dtype=dtype, rngs=rngs)
            if geometry.hierarchical and geometry.square
            else None
        )
        self.carrier_layer = (
            TransformerLayer(config, width, heads, side, rate, dtype=dtype, rngs=rngs)
            if geometry.hierarchical
            else None
        )

    def __call__(
        self, windows: jax.Array, carriers: jax.Array | None, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Windows [N·windows, side², C] and carrier tokens [N, windows·ct², C] → the same."""
        windows = windows + self.window_position().astype(windows.dtype)
        if not self.hierarchical:
            return self.window_layer(windows, rngs), carriers

        carriers = self._exchange_between_windows(carriers, rngs)
        per_window = carriers.reshape(len(windows), self.ct_size**2, -1)
        tokens = self.window_layer(jnp.concatenate([per_window, windows], axis=1), rngs)
        per_window, windows = jnp.split(tokens, [self.ct_size**2], axis=1)
        if self.propagates:
            windows = windows + self._propagated(per_window)
        return windows, per_window.reshape(carriers.shape)

    def _exchange_between_windows(self, carriers: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Lets the carrier tokens of all windows attend to each other."""
        picture = carriers_to_picture(carriers, self.ct_size, self.grid)
        if self.carrier_position is not None:
            picture = picture + self.carrier_position().astype(picture.dtype)
        picture = self.carrier_layer(picture, rngs)
        # The reference exchanges height and width here, and only here. It changes nothing on a
        # square grid; on others being faithful means the same.
        return picture_to_carriers(picture, self.ct_size, self.grid[::-1])

    def _propagated(self, per_window: jax.Array) -> jax.Array:
        """Carrier tokens [N·windows, ct², C] for each position of their window: [.., side², C]."""
        # Nearest neighbour, with torch's float32 index.
        ratio = np.float32(self.ct_size / self.window_size)
        near = np.floor(np.arange(self.window_size, dtype=np.float32) * ratio).astype(np.int32)
        token = near[:, None] * self.ct_size + near[None, :]
        spread = per_window[:, token.reshape(-1)]
        scale = self.carrier_layer.attention_scale
        return spread if scale is None else scale(spread)
