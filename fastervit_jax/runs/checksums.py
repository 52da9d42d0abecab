"""Checksums of arrays that do not depend on the mesh.

Stored data may be damaged (a flipped bit on a disk, a truncated file), and Orbax does not detect
this. A checksum is therefore stored with every array and is compared when the array is read.

The checksum of an array is the sum, modulo 2³², of one number per element. The number is computed
from the bits of the element and its index in the array. Each device sums its own elements, and the
host adds the sums of the devices. No array is gathered, and the result does not depend on the
sharding. (Many simultaneous collectives can block the simulated devices of a CPU.)

For a fixed index, different elements give different numbers. A change of one element is therefore
always detected. Any other change is missed with a probability of 1 in 2³².
"""

import functools
import math
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def checksums(tree) -> dict[str, int]:
    """Returns the checksum of every array of a tree, by its path in the tree.

    The checksum includes dtype and shape. Every process of a mesh must call it.

    Raises:
        TypeError: an element is larger than 4 bytes. A `TrainState` has no such arrays.
    """
    return start_checksums(tree)()


def start_checksums(tree) -> Callable[[], dict[str, int]]:
    """Starts computing checksums on the devices. The result waits for them, in any thread.

    The arrays may be donated afterwards. With several processes, this function itself waits,
    because the processes exchange their sums. Otherwise it is like `checksums`.
    """
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    whole = [array.is_fully_addressable for array in arrays.values()]
    sums = [_compiled_sum(array.sharding)(array) for array in arrays.values()]
    kinds = [zlib.crc32(f"{array.dtype}{array.shape}".encode()) for array in arrays.values()]

    def wait() -> dict[str, int]:
        here = [[part.data for part in of_devices.addressable_shards] for of_devices in sums]
        totals = [int(np.sum(parts, dtype=np.uint32)) for parts in jax.device_get(here)]
        if jax.process_count() > 1:
            of_all = np.asarray(multihost_utils.process_allgather(np.array(totals, np.uint32)))
            summed = of_all.sum(axis=0, dtype=np.uint32).tolist()
            # An array on this process's devices alone, such as one that an evaluation reads, is
            # whole on every process.
            totals = [
                own if w else both for own, both, w in zip(totals, summed, whole, strict=True)
            ]
        return {
            name: (total + kind) % 2**32
            for name, total, kind in zip(arrays, totals, kinds, strict=True)
        }

    if jax.process_count() == 1:
        return wait
    result = wait()
    return lambda: result


def text_checksum(text: str) -> int:
    """Returns the checksum of a text."""
    return zlib.crc32(text.encode())


@functools.cache
def _compiled_sum(sharding: Sharding):
    """Returns the jitted sum of arrays with a sharding: one number per device."""
    if not isinstance(sharding, NamedSharding):
        return jax.jit(lambda array: _sum_of_mixed(array, _places(array.shape, (), {}))[None])
    mesh, spec = sharding.mesh, sharding.spec
    used = [name for axis in range(len(spec)) for name in _names(spec, axis)]

    def part(array: jax.Array) -> jax.Array:
        total = _sum_of_mixed(array, _places(array.shape, spec, mesh.shape))
        # If several devices have the same part, only the first one counts.
        for name in mesh.axis_names:
            if name not in used:
                total = jnp.where(jax.lax.axis_index(name) == 0, total, 0)
        return total[None]

    everywhere = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=everywhere))


def _places(shape: tuple[int, ...], spec, sizes: Mapping[str, int]) -> jax.Array:
    """Returns the indices of a part's elements in the flattened whole array, modulo 2³²."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        names = _names(spec, axis)
        first = jax.lax.axis_index(names).astype(jnp.uint32) * shape[axis] if names else 0
        places += (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + first) * np.uint32(
            stride % 2**32
        )
        stride *= shape[axis] * math.prod(sizes[name] for name in names)
    return places


def _names(spec, axis: int) -> tuple[str, ...]:
    """Returns the mesh axes over which an array axis is split."""
    names = spec[axis] if axis < len(spec) else None
    return (names,) if isinstance(names, str) else tuple(names or ())


def _sum_of_mixed(array: jax.Array, places: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize not in _UNSIGNED:
        raise TypeError(
            f"Invalid dtype for a checksum: expected at most 4 bytes, got {array.dtype}."
        )
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    # Multiplication by odd numbers and xor with a right shift are one-to-one. The constants are
    # from MurmurHash3 and the golden ratio. The shift makes the effect of the index depend on the
    # bits.
    mixed = bits * (places * np.uint32(2 * 0x9E3779B9 % 2**32) + np.uint32(1))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
