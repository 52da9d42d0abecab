"""Buffers of the official model that our model derives from its configuration and weights.

They are in the official state dict: tables of relative coordinates, indices into these tables,
position biases for deployment, and batch counts of batch norm.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from fastervit_jax.models import FasterViTConfig
from fastervit_jax.models.config import ATTENTION_STAGES
from fastervit_jax.weights.tensors import StoredTensor

TABLE = "relative_coords_table"
INDEX = "relative_position_index"
BIAS = "relative_bias"
COUNT = "num_batches_tracked"
SUFFIXES = (TABLE, INDEX, BIAS, COUNT)


class PositionModule(NamedTuple):
    """An official position module. It maps the coordinates of a square to a bias or an embedding.

    Attributes:
        name: path in the official model.
        side: side of the square, in tokens.
        tokens: number of tokens. Tokens outside the square come first and get zero.
        features: number of heads for an attention bias, width for an embedding.
        relative: True for an attention bias (`PosEmbMLPSwinv2D`), False for an embedding of tokens
            (`PosEmbMLPSwinv1D`).
        of_carriers: whether the tokens are the carrier tokens of all windows.
    """

    name: str
    side: int
    tokens: int
    features: int
    relative: bool
    of_carriers: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the buffers, by full name."""
        if not self.relative:
            return {f"{self.name}.{BIAS}": (1, self.tokens, self.features)}
        steps, square = 2 * self.side - 1, self.side**2
        return {
            f"{self.name}.{TABLE}": (1, steps, steps, 2),
            f"{self.name}.{INDEX}": (square, square),
            f"{self.name}.{BIAS}": (1, self.features, self.tokens, self.tokens),
        }


def position_modules(config: FasterViTConfig) -> Iterator[PositionModule]:
    """Yields the position modules of the official model with this configuration."""
    for stage in ATTENTION_STAGES:
        window, width = config.window_size[stage], config.widths[stage]
        heads = config.num_heads[stage]
        geometry = config.geometry(stage)
        carriers = config.ct_size**2 if geometry.hierarchical else 0
        all_carriers = carriers * geometry.window_grid[0] * geometry.window_grid[1]
        for block in range(config.depths[stage]):
            path = f"levels.{stage}.blocks.{block}"
            yield PositionModule(f"{path}.pos_embed", window, window**2, width, False, False)
            yield PositionModule(
                f"{path}.attn.pos_emb_funct", window, window**2 + carriers, heads, True, False
            )
            if not geometry.hierarchical:
                continue
            side = math.isqrt(all_carriers)
            yield PositionModule(
                f"{path}.hat_attn.pos_emb_funct", side, all_carriers, heads, True, True
            )
            if geometry.square:
                yield PositionModule(
                    f"{path}.hat_pos_embed", side, all_carriers, width, False, True
                )


def position_index(side: int) -> np.ndarray:
    """Returns the row of the coordinate table for each pair of positions.

    Returns:
        int64 `[side², side²]`.
    """
    row, column = np.divmod(np.arange(side**2), side)
    rows = row[:, None] - row[None, :] + side - 1
    columns = column[:, None] - column[None, :] + side - 1
    return rows * (2 * side - 1) + columns


def coordinate_table(side: int) -> np.ndarray:
    """Returns log-spaced relative coordinates (row, column).

    Returns:
        float64 `[1, 2·side − 1, 2·side − 1, 2]`.
    """
    scaled = np.arange(1 - side, side) / (side - 1) * 8
    steps = np.sign(scaled) * np.log2(np.abs(scaled) + 1) / 3
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)[None]


_ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def stored_coordinates(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Compares stored coordinates and indices with the derived ones.

    The official model loads them, our model derives them. In an EMA of the weights, the stored
    tables differ by up to 1e-4.

    Args:
        tensors: tensors of an official checkpoint, by official name.

    Returns:
        One line for the user if they differ by more than rounding, otherwise an empty list.

    Raises:
        ValueError: the shape of a table or an index does not belong to a square.
    """
    differences = {}
    for name, tensor in tensors.items():
        if name.endswith(TABLE) and len(tensor.shape) == 4:
            derived = coordinate_table((tensor.shape[1] + 1) // 2)
        elif name.endswith(INDEX) and len(tensor.shape) == 2:
            derived = position_index(math.isqrt(tensor.shape[0]))
        else:
            continue
        if derived.shape != tensor.shape:
            raise ValueError(
                f"Invalid shape of {name}: expected {derived.shape}, got {tensor.shape}."
            )
        difference = np.abs(tensor.read() - derived).max()
        if not difference <= 4 * _ROUNDING.get(tensor.dtype, 2.0**-23):
            differences[name] = difference
    if not differences:
        return []
    worst = max(differences, key=lambda name: differences[name])
    return [
        f"Stored coordinates differ from the derived ones in {len(differences)} tensors, by up to "
        f"{differences[worst]:.1e} ({worst}). The official model uses the stored ones. This model "
        "uses the derived ones."
    ]
