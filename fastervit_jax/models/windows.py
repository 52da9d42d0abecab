"""Moving tokens between maps, windows and carrier tokens.

Maps are [N, H, W, C]. Windows are [N·windows, side², C]: the windows of an image are in row-major
order, and so are the tokens of a window.

Carrier tokens are [N, windows·ct², C], in one of two orders. *By window*: the ct² carriers of the
first window, then those of the second. *As a map*: row by row of one carrier map, in which every
window owns a ct × ct square.
"""

import jax
import jax.numpy as jnp


def pad_to_windows(x: jax.Array, window: int) -> jax.Array:
    """Pads a map [N, H, W, C] with zeros on the right and bottom, up to whole windows."""
    _, height, width, _ = x.shape
    bottom, right = -height % window, -width % window
    if not bottom and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def map_to_windows(x: jax.Array, window: int) -> jax.Array:
    """[N, H, W, C] → [N·(H/window)·(W/window), window², C]."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // window, window, width // window, window, channels)
    return x.swapaxes(2, 3).reshape(-1, window * window, channels)


def windows_to_map(x: jax.Array, window: int, grid: tuple[int, int]) -> jax.Array:
    """Inverse of `map_to_windows`, for a grid of (rows, columns) of windows."""
    rows, columns = grid
    channels = x.shape[-1]
    x = x.reshape(-1, rows, columns, window, window, channels)
    return x.swapaxes(2, 3).reshape(-1, rows * window, columns * window, channels)


def carriers_to_map(x: jax.Array, ct_size: int, grid: tuple[int, int]) -> jax.Array:
    """Orders carrier tokens [N, windows·ct², C] as a map (the reference's `ct_dewindow`)."""
    n, tokens, channels = x.shape
    return windows_to_map(x, ct_size, grid).reshape(n, tokens, channels)


def map_to_carriers(x: jax.Array, ct_size: int, grid: tuple[int, int]) -> jax.Array:
    """Orders carrier tokens [N, windows·ct², C] by window (the reference's `ct_window`)."""
    n, tokens, channels = x.shape
    rows, columns = grid
    carrier_map = x.reshape(n, rows * ct_size, columns * ct_size, channels)
    return map_to_windows(carrier_map, ct_size).reshape(n, tokens, channels)
