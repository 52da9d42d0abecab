"""Checksums: equal on any mesh, and different for anything else."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fastervit_jax.runs.checksums import checksums

RNG = np.random.default_rng(0)
ARRAY = RNG.standard_normal((16, 3, 8)).astype(np.float32)


def _by_definition(array: np.ndarray) -> int:
    """The same sum in Python's integers, an element at a time."""
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    total = zlib.crc32(f"{array.dtype}{array.shape}".encode())
    for place, bits in enumerate(array.view(unsigned).ravel().tolist()):
        mixed = bits * (place * 2 * 0x9E3779B9 + 1) % 2**32
        mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % 2**32
        total += mixed ^ (mixed >> 13)
    return total % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_the_sum_is_as_defined(dtype):
    array = np.asarray(jnp.asarray(100 * ARRAY).astype(dtype))
    assert checksums({"a": jnp.asarray(array)}) == {"a": _by_definition(array)}


@pytest.mark.parametrize(
    "spec", [(), ("x",), (None, None, "x"), ("x", None, "y"), (("x", "y"),)], ids=str
)
def test_it_is_the_same_however_the_array_lies_on_a_mesh(spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    array = jax.device_put(ARRAY, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums([array]) == checksums([jnp.asarray(ARRAY)])


def test_every_flipped_bit_is_noticed():
    flips = RNG.integers(0, ARRAY.nbytes * 8, 200).tolist()
    whole = checksums({"a": jnp.asarray(ARRAY)})
    for flip in flips:
        data = bytearray(ARRAY.tobytes())
        data[flip // 8] ^= 1 << flip % 8
        damaged = np.frombuffer(bytes(data), np.float32).reshape(ARRAY.shape)
        assert checksums({"a": jnp.asarray(damaged)}) != whole, flip


def test_exchanged_elements_another_shape_and_another_type_are_noticed():
    whole = checksums([jnp.asarray(ARRAY)])
    exchanged = ARRAY.copy()
    exchanged[0], exchanged[1] = ARRAY[1], ARRAY[0]
    for other in (exchanged, ARRAY.reshape(3, 16, 8), ARRAY.view(np.int32), np.zeros_like(ARRAY)):
        assert checksums([jnp.asarray(other)]) != whole
