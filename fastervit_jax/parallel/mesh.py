"""The mesh of devices and the sharding of batches.

The mesh has three axes:

- `data` splits the batch. Every device has a full copy of the model.
- `fsdp` splits the batch, the parameters and the optimizer state.
- `tensor` splits the work on one image along the widths of the attention blocks.
"""

import math
from collections.abc import Mapping

import chex
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """Creates the mesh.

    Args:
        data: size of the axis `data`. One axis may have the size -1, which means all remaining
            devices.
        fsdp: size of the axis `fsdp`.
        tensor: size of the axis `tensor`.
        devices: the devices to use; by default all devices of all hosts.

    Raises:
        ValueError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _resolve_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices
    )


def _resolve_sizes(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    shown = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(
            f"Invalid mesh {shown}: every size must be positive, or -1 for all remaining devices."
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"Invalid mesh {shown}: only one size can be -1.")
    if open_axes:
        if num_devices % known:
            raise ValueError(
                f"Invalid mesh {shown}: the product of the given sizes is {known}, which must "
                f"divide the {num_devices} devices."
            )
        sizes = {**sizes, open_axes[0]: num_devices // known}
    elif known != num_devices:
        raise ValueError(
            f"Invalid mesh {shown}: the product of the sizes is {known}, but there are "
            f"{num_devices} devices. Change the sizes, or set one of them to -1."
        )
    return tuple(sizes.values())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts into which the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this host's part of a batch on its devices, as a part of the global batch.

    Args:
        batch: arrays of this host. Their first axis is this host's part of the batch.
        mesh: the mesh.

    Returns:
        The global arrays.
    """
    chex.assert_equal_shape_prefix(list(batch.values()), 1)
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
