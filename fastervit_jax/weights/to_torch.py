"""Write our arrays as a state dict of the official model."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastervit_jax.models import Family, FasterViTConfig, NetworkConfig
from fastervit_jax.models.fastervit import FASTERVIT
from fastervit_jax.weights import torch_buffers
from fastervit_jax.weights.directory import flush
from fastervit_jax.weights.names import copies, to_torch_layout, torch_name

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]


def state_to_torch(
    arrays: Mapping[str, np.ndarray], config: NetworkConfig, family: Family = FASTERVIT
) -> State:
    """Returns the state dict of the official model, which loads with `strict=True`.

    Args:
        arrays: all parameters and statistics, by our dotted names.
        config: configuration of the network.
        family: its family.

    Returns:
        Tensors by official name: the weights in torch's layout and the derived buffers. A tensor
        of several names (`names.copies`) is one tensor and is stored once. The position biases are
        those that the official model computes in a forward pass, because its `switch_to_deploy`
        needs them. `num_batches_tracked` is 0.
    """
    import torch

    state: State = {}
    layers = getattr(config, "decoder_layers", 0)
    for ours, array in arrays.items():
        theirs = torch_name(ours, family.torch_modules, family.torch_backbone)
        # `np.array` copies, because torch must not share memory that is mapped or read-only.
        tensor = torch.from_numpy(np.array(to_torch_layout(array, ours), np.float32, order="C"))
        state[theirs] = tensor
        for copy in copies(theirs, layers):
            state[copy] = tensor
        if theirs.endswith("running_mean"):
            count = theirs.removesuffix("running_mean") + torch_buffers.COUNT
            state[count] = torch.zeros((), dtype=torch.int64)
    with torch.no_grad():
        prefix = "" if config.backbone is config else family.torch_backbone
        _add_position_buffers(state, config.backbone, prefix)
    return state


def _add_position_buffers(state: State, config: FasterViTConfig, prefix: str) -> None:
    import torch

    tables: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in torch_buffers.position_modules(config):
        module = module._replace(name=prefix + module.name)
        if not module.relative:
            half = (module.side**2 if config.position_by_tokens else module.side) // 2
            state[f"{module.name}.{torch_buffers.BIAS}"] = _embedding(module, state, half)
            continue
        if module.side not in tables:
            index = torch.from_numpy(torch_buffers.position_index(module.side))
            tables[module.side] = (_coordinate_table(module.side), index)
        table, index = tables[module.side]
        state[f"{module.name}.{torch_buffers.TABLE}"] = table
        state[f"{module.name}.{torch_buffers.INDEX}"] = index
        state[f"{module.name}.{torch_buffers.BIAS}"] = _attention_bias(module, state, table, index)


def _coordinate_table(side: int) -> "torch.Tensor":
    """Computes `torch_buffers.coordinate_table` in float32, as the official code does."""
    import torch

    steps = torch.arange(1 - side, side, dtype=torch.float32) / (side - 1) * 8
    steps = torch.sign(steps) * torch.log2(torch.abs(steps) + 1) / np.log2(8)
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)[None]


def _network(module: torch_buffers.PositionModule, state: State, coordinates: "torch.Tensor"):
    from torch.nn import functional

    weight, bias, out = (
        state[f"{module.name}.cpb_mlp.{part}"] for part in ("0.weight", "0.bias", "2.weight")
    )
    return functional.linear(functional.relu(functional.linear(coordinates, weight, bias)), out)


def _embedding(module: torch_buffers.PositionModule, state: State, half: int) -> "torch.Tensor":
    """Returns the embedding that is added to a square of tokens, `[1, side², features]`."""
    import torch

    steps = (torch.arange(module.side, dtype=torch.float32) - half) / half
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
    return _network(module, state, grid.reshape(1, -1, 2))


def _attention_bias(
    module: torch_buffers.PositionModule, state: State, table: "torch.Tensor", index: "torch.Tensor"
) -> "torch.Tensor":
    """Returns the bias of the attention logits, `[1, heads, tokens, tokens]`.

    The bias of the carrier tokens in front of the window's tokens is zero.
    """
    import torch

    square, in_front = module.side**2, module.tokens - module.side**2
    rows = _network(module, state, table).reshape(-1, module.features)
    # Make it contiguous before the sigmoid as in the official code. The last bit depends on it.
    pairs = rows[index.reshape(-1)].reshape(square, square, -1).permute(2, 0, 1).contiguous()
    return torch.nn.functional.pad(16 * torch.sigmoid(pairs), (in_front, 0, in_front, 0))[None]


@contextlib.contextmanager
def staged_file(path: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a temporary path, and renames the file to `path` if there is no error.

    Raises:
        FileExistsError: the path exists and may not be replaced.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{path} is a directory. Pass the path of a file.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, or use --overwrite (overwrite=True)."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        yield beside
        flush(beside)
        os.replace(beside, path)
    flush(path.parent)
