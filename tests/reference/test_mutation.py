"""Proof that the comparison of logits sees every tensor.

In a small network with the comparison's weights, each tensor is changed, one after another: its
sign is turned (a variance doubled). The logits must move by more than `LEAST` of the largest, a
hundred times what parity allows, but for the tensors that provably cannot matter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.models.pure_model import flatten, unflatten
from tests.reference.official import images, largest_difference, official_model, our_model

LEAST = 1e-3
SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 1), num_classes=20, window_size=(4, 4, 4, 4))
CASES = {
    "square": ("faster_vit_3_224", dict(resolution=128, layer_scale_conv=0.7)),
    "any_res, wide": ("faster_vit_3_any_res", dict(resolution=(120, 180))),
    "any_res, one window": ("faster_vit_0_any_res", dict(resolution=(64, 64))),
    "21k": ("faster_vit_4_21k_224", dict(resolution=128, num_heads=(2, 4, 8, 16))),
}
WITHOUT_EFFECT = {
    # One window covers the map, so there are no carrier tokens to make; the official any_res
    # network owns the convolution that would make them all the same.
    "any_res, one window": {
        "stages.2.carrier_tokenizer.convolution.kernel",
        "stages.2.carrier_tokenizer.convolution.bias",
    },
}


@functools.cache
def small_model(case: str):
    """Logits as a compiled function of the arrays, and these arrays by name."""
    name, options = CASES[case]
    options = SMALL | options
    model = our_model(name, official_model(name, **options), **options)
    batch = jnp.asarray(images(2, *model.config.resolution), jnp.float32)
    graph, state = nnx.split(model)
    logits = jax.jit(lambda arrays: nnx.merge(graph, unflatten(arrays))(batch))
    return logits, flatten(state)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_moves_the_logits(case, record_property):
    logits, arrays = small_model(case)
    original = logits(arrays)
    moves = {}
    for name, array in arrays.items():
        changed = 2 * array if name.endswith(".var") else -array
        moves[name] = largest_difference(logits(arrays | {name: changed}), original)

    unmoved = {name for name, move in moves.items() if move == 0}
    assert unmoved == WITHOUT_EFFECT.get(case, set())
    smallest = min(moves.keys() - unmoved, key=moves.get)
    text = f"{len(moves)} tensors; the smallest move is {moves[smallest]:.1e}, by {smallest}"
    record_property("mutation", text)
    print(text)
    assert moves[smallest] > LEAST


def test_a_bias_of_the_keys_alone_cannot_matter():
    """It adds the same to all logits of a query's attention, which softmax does not see."""
    logits, arrays = small_model("square")
    original = logits(arrays)
    for name, array in arrays.items():
        if name.endswith("qkv.bias"):
            width = array.size // 3
            keys = np.arange(array.size) // width == 1
            changed = jnp.where(keys, -array, array)
            assert largest_difference(logits(arrays | {name: changed}), original) < 1e-5, name
