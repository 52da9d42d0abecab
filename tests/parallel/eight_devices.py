"""Compiles a function for a mesh of eight CPU devices and looks for communication in it."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.quick_compilation import quickest_compilation

_COLLECTIVE = re.compile("all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all")


def run_on_mesh(function, shape, axis_type=AxisType.Auto):
    """Collectives in the compiled `function(key, images, labels, mesh)`, and its results."""
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(axis_type,) * 3)
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
    arguments = (
        jax.random.key(0),
        jax.device_put(images, batch),
        jax.device_put(np.arange(32) % 8, batch),
    )
    lowered = jax.jit(lambda *arguments: function(*arguments, mesh)).lower(*arguments)
    program = lowered.compile(quickest_compilation())
    return set(_COLLECTIVE.findall(program.as_text())), program(*arguments)
