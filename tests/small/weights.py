"""Small networks with random weights, made without initialising them."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.models import FasterViT, abstract_model, variant_config
from fastervit_jax.models.pure_model import arrays_of, unflatten
from fastervit_jax.weights.loading import describe

SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 2), num_classes=10)
"""Options of a network that loads at once, with all that the large ones have."""


def random_model(name: str = "faster_vit_3_224", seed: int = 0, **options) -> FasterViT:
    """A network of `SMALL` sizes (or those of `options`) with normal weights."""
    generator = np.random.default_rng(seed)
    model = abstract_model(variant_config(name, **{**SMALL, **options}))
    arrays = {}
    for part in arrays_of(model):
        for key, array in part.items():
            value = 0.2 * generator.standard_normal(array.shape, np.float32)
            arrays[key] = jnp.asarray(np.exp(value) if key.endswith(".var") else value)
    nnx.update(model, unflatten(arrays))
    model.eval()
    describe(model, name)
    return model


def arrays(model: FasterViT) -> dict[str, np.ndarray]:
    """All parameters and statistics by dotted name."""
    return {key: np.asarray(array) for part in arrays_of(model) for key, array in part.items()}


def assert_same(model: FasterViT, other: FasterViT) -> None:
    """Every array of both has the same bits."""
    ours, theirs = arrays(model), arrays(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
