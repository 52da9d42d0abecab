"""The blocks of a stage as one loop over their stacked weights.

The result is that of running the blocks one after the other. The program, and the time to compile
it, do not grow with the number of blocks.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.hierarchical_attention import HierarchicalAttentionBlock
from fastervit_jax.models.pure_model import Arrays, flatten, unflatten

Tokens = tuple[jax.Array, jax.Array | None]
"""Windows [N·windows, side², C], and carrier tokens [N, windows·ct², C] or None."""


def scan_blocks(
    blocks: Sequence[HierarchicalAttentionBlock],
    tokens: Tokens,
    grid: tuple[int, int],
    keys: Sequence[jax.Array | None],
    *,
    remat: bool,
    gather: Callable[[Arrays], Arrays] | None,
) -> Tokens:
    """Runs blocks of equal shapes as one loop.

    Args:
        blocks: none, or blocks whose arrays have the same names and shapes.
        tokens: what enters the first block.
        grid: (rows, columns) of windows.
        keys: each block's random key, or None where nothing is drawn.
        remat: keep what enters each block, and compute the rest again for the gradient.
        gather: brings a block's arrays together where they are used (`parallel.partition`); None
            where they are whole.
    """
    if not blocks:
        return tokens
    graph = nnx.graphdef(blocks[0])
    arrays = [flatten(nnx.state(block)) for block in blocks]
    keep = jnp.asarray([block.window_layer.drop_path.keep for block in blocks])
    stacked = jax.tree.map(lambda *each: jnp.stack(each), *arrays)
    all_keys = None if None in keys else jnp.stack([key for key in keys if key is not None])

    def body(tokens: Tokens, of_block):
        arrays, keep, key = of_block
        block = nnx.merge(graph, unflatten(gather(arrays) if gather else arrays))
        block.keep_paths(keep)
        return run_block(block, tokens, grid, key), None

    body = jax.checkpoint(body, prevent_cse=False) if remat else body
    return jax.lax.scan(body, tokens, (stacked, keep, all_keys))[0]


def run_block(
    block: HierarchicalAttentionBlock,
    tokens: Tokens,
    grid: tuple[int, int],
    key: jax.Array | None,
) -> Tokens:
    """One block, which draws from a key of its own."""
    windows, carriers = tokens
    return block(windows, carriers, grid, None if key is None else nnx.Rngs(dropout=key))
