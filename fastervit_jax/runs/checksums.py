"""Checksums of arrays, the same on every mesh.

What is stored may come back changed (a flipped bit on a disk, a file cut short), and Orbax returns
it as it is. A checksum goes with every array and is compared when it is read.

An array's checksum is a sum, modulo 2³², of one number an element, mixed from its bits and its
place in the array. Devices sum what they hold and the host adds these up, so nothing is gathered
and the result does not depend on how the array is laid out. (Many programs with collectives in
flight lock up the forced devices of a CPU.) The mixing is one-to-one for any place: a single
changed element is always noticed, any other change but with a chance of 1 in 2³².
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
    """The checksum of every array of a tree, by its path in it.

    Type and shape are part of the checksum. Every process of a mesh must call this.

    Raises:
        TypeError: an element is larger than 4 bytes, which no state of ours holds.
    """
    return start_checksums(tree)()


def start_checksums(tree) -> Callable[[], dict[str, int]]:
    """Has the devices make the checksums; what it returns waits for them, in any thread.

    The arrays may then be donated. Several processes wait here and now, since they exchange their
    sums. Otherwise like `checksums`.
    """
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sums = [_compiled_sum(array.sharding)(array) for array in arrays.values()]
    kinds = [zlib.crc32(f"{array.dtype}{array.shape}".encode()) for array in arrays.values()]

    def wait() -> dict[str, int]:
        here = [[part.data for part in of_devices.addressable_shards] for of_devices in sums]
        totals = [int(np.sum(parts, dtype=np.uint32)) for parts in jax.device_get(here)]
        if jax.process_count() > 1:
            of_all = np.asarray(multihost_utils.process_allgather(np.array(totals, np.uint32)))
            totals = of_all.sum(axis=0, dtype=np.uint32).tolist()
        return {
            name: (total + kind) % 2**32
            for name, total, kind in zip(arrays, totals, kinds, strict=True)
        }

    if jax.process_count() == 1:
        return wait
    result = wait()
    return lambda: result


def text_checksum(text: str) -> int:
    """The checksum of a text."""
    return zlib.crc32(text.encode())


@functools.cache
def _compiled_sum(sharding: Sharding):
    """The jitted sum of such arrays: one number a device, to be added up; small programs."""
    if not isinstance(sharding, NamedSharding):
        return jax.jit(lambda array: _sum_of_mixed(array, _places(array.shape, (), {}))[None])
    mesh, spec = sharding.mesh, sharding.spec
    used = [name for axis in range(len(spec)) for name in _names(spec, axis)]

    def part(array: jax.Array) -> jax.Array:
        total = _sum_of_mixed(array, _places(array.shape, spec, mesh.shape))
        # Of devices that hold the same, the first counts.
        for name in mesh.axis_names:
            if name not in used:
                total = jnp.where(jax.lax.axis_index(name) == 0, total, 0)
        return total[None]

    everywhere = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=everywhere))


def _places(shape: tuple[int, ...], spec, sizes: Mapping[str, int]) -> jax.Array:
    """Places of a part's elements in the whole array, in its order of elements, modulo 2³²."""
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
    """The mesh axes that an axis is split over."""
    names = spec[axis] if axis < len(spec) else None
    return (names,) if isinstance(names, str) else tuple(names or ())


def _sum_of_mixed(array: jax.Array, places: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize not in _UNSIGNED:
        raise TypeError(f"There is no checksum for elements of type {array.dtype}.")
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    # Odd factors and shifts to the right are one-to-one (the constants are MurmurHash3's and the
    # golden ratio's); the shift makes places count differently for different bits.
    mixed = bits * (places * np.uint32(2 * 0x9E3779B9 % 2**32) + np.uint32(1))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
