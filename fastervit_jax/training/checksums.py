"""Checksums of arrays, the same on every mesh.

What is stored may come back changed (a flipped bit on a disk, a file cut short), and Orbax returns
it as it is. A checksum goes with every array and is compared when it is read.

An array's checksum is a sum, modulo 2³², of one number an element, mixed from its bits and its
place in the array. Devices sum what they hold, so nothing is gathered and the result does not
depend on how the array is laid out. The mixing is one-to-one for any place: a single changed
element is always noticed, any other change but with a chance of 1 in 2³².
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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

    The arrays may then be donated. Otherwise like `checksums`.
    """
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sums = {name: _compiled_sum(array.sharding)(array) for name, array in arrays.items()}
    kinds = {name: f"{array.dtype}{array.shape}" for name, array in arrays.items()}
    return lambda: {
        name: (int(value) + zlib.crc32(kinds[name].encode())) % 2**32
        for name, value in jax.device_get(sums).items()
    }


def text_checksum(text: str) -> int:
    """The checksum of a text."""
    return zlib.crc32(text.encode())


_jitted: dict = {}


def _compiled_sum(sharding):
    """The jitted sum for arrays on a mesh or a device; a small program for every shape."""
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if mesh not in _jitted:
        everywhere = NamedSharding(mesh, PartitionSpec()) if mesh is not None else None
        _jitted[mesh] = jax.jit(_sum_of_mixed, out_shardings=everywhere)
    return _jitted[mesh]


def _sum_of_mixed(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize not in _UNSIGNED:
        raise TypeError(f"There is no checksum for elements of type {array.dtype}.")
    bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = np.uint32(math.prod(array.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * stride
    # Odd factors and shifts to the right are one-to-one (the constants are MurmurHash3's and the
    # golden ratio's); the shift makes places count differently for different bits.
    mixed = bits * (place * np.uint32(2 * 0x9E3779B9 % 2**32) + np.uint32(1))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
