"""A network small enough for tests, with everything the large ones have."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models import FasterViT, abstract_model, variant_config

SMALL = dict(
    dim=8,
    in_dim=8,
    depths=(1, 1, 1, 1),
    window_size=(4, 4, 4, 4),
    resolution=128,
    num_classes=10,
)
"""Options of a network whose third stage has 2×2 windows with carrier tokens.

Works for the models with heads (2, 4, 8, 16): numbers 0 to 3.
"""


def small_model(name: str = "faster_vit_0_224", *, dtype=jnp.float32, **options) -> FasterViT:
    """A small network in evaluation mode, with weights of order 1/√fan-in from NumPy.

    Takes no time, where compiling the draws of every shape would take ten seconds.
    """
    model = abstract_model(variant_config(name, **{**SMALL, **options}), dtype=dtype)
    random = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        shape = variable.shape
        if len(shape) > 1:
            value = random.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))
        elif path[-1] in ("scale", "gamma", "var"):
            value = random.uniform(0.5, 1.5, shape)
        else:
            value = 0.3 * random.standard_normal(shape)
        variable.set_value(jnp.asarray(value, jnp.float32))
    model.eval()
    return model
