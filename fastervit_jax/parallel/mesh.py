"""The mesh of devices, and how batches are laid on it.

One mesh for everything, with three axes:

- `data`: whole copies of the model, each with its own images;
- `fsdp`: images are split as on `data`, and parameters and optimizer state are split too;
- `tensor`: one image's work is split, along the widths of the attention blocks.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """Arranges devices in a mesh.

    Args:
        data: size of the axis `data`; -1, for one axis at most, means all devices that remain.
        fsdp: size of the axis `fsdp`.
        tensor: size of the axis `tensor`.
        devices: the devices to use; by default all of all hosts.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _resolve_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices
    )


def _resolve_sizes(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    shown = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh {shown}: every size must be positive, or -1 for what remains.")
    known = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh {shown}: only one size can be -1.")
    if open_axes:
        if num_devices % known:
            raise ValueError(
                f"mesh {shown}: the given sizes multiply to {known}, which does not divide the "
                f"{num_devices} devices."
            )
        sizes = {**sizes, open_axes[0]: num_devices // known}
    elif known != num_devices:
        raise ValueError(
            f"mesh {shown}: the sizes multiply to {known}, but there are {num_devices} devices: "
            f"change the sizes, or set one to -1."
        )
    return tuple(sizes.values())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How arrays are laid on the mesh whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """How arrays are laid on the mesh that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on its devices, as a part of the global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
