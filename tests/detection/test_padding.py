"""What surrounds an image in its batch, and what it does to the result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.detection import Inputs
from tests.detection import golden_files
from tests.quick_compilation import quick_jit

BUCKET = (192, 256)
SIZE = (160, 224)


@functools.cache
def network():
    about, _ = golden_files.golden(4)
    return nnx.split(golden_files.network(about))


@quick_jit
def detect(state, images, sizes):
    outputs = nnx.merge(network()[0], state)(Inputs(images, sizes))
    return outputs.logits[-1], outputs.boxes[-1]


@quick_jit
def detect_from_maps(state, maps, images, sizes, rubbish):
    """Detections, where all tokens on padding hold a number."""
    model = nnx.merge(network()[0], state)
    tokens, levels = model.tokens(maps, Inputs(images, sizes))
    tokens = jnp.where(levels.padding[..., None], rubbish, tokens)
    memory = model.encoder(tokens, levels)
    selected = model.selection(memory, levels)
    decoded = model.decoder(selected.content, selected.references, memory, levels)
    return decoded.logits[-1], decoded.boxes[-1]


def _batch(first, others):
    images = np.zeros((1 + len(others), *BUCKET, 3), np.float32)
    images[0, : SIZE[0], : SIZE[1]] = first
    sizes = [SIZE]
    for row, other in enumerate(others, 1):
        height, width = other.shape[:2]
        images[row, :height, :width] = other
        sizes.append((height, width))
    return jnp.asarray(images), jnp.asarray(sizes)


def test_the_rest_of_a_batch_changes_nothing():
    """An image beside blank ones, and beside others of other sizes, in the same bucket.

    So a bucket does what the official padding does: that of a batch whose largest image has the
    bucket's size. The golden files have such a batch.
    """
    rng = np.random.default_rng(0)
    image = rng.standard_normal((*SIZE, 3)).astype(np.float32)
    others = [rng.standard_normal((*size, 3)).astype(np.float32) for size in (BUCKET, (70, 90))]
    _, state = network()
    blank = np.zeros((32, 32, 3), np.float32)
    alone = detect(state, *_batch(image, [blank, blank]))  # one program for both
    beside = detect(state, *_batch(image, others))
    for ours, theirs in zip(beside, alone, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-6)


def test_padding_tokens_are_not_seen():
    """After the projections, what stands in padding changes no result: not one bit."""
    rng = np.random.default_rng(1)
    image = rng.standard_normal((*SIZE, 3)).astype(np.float32)
    images, sizes = _batch(image, [])
    model = nnx.merge(*network())
    widths = [model.config.backbone.widths[stage] for stage in model.config.stages]
    maps = [
        jnp.asarray(rng.standard_normal((1, BUCKET[0] // s, BUCKET[1] // s, w)), jnp.float32)
        for s, w in zip((8, 16, 32), widths, strict=True)
    ]
    one, other = (detect_from_maps(network()[1], maps, images, sizes, n) for n in (0.0, 7.0))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert np.isfinite(one[0]).all()


def test_small_images():
    """Images smaller than a window are padded to one. Too small for the queries is refused."""
    model = nnx.merge(*network())
    image = jnp.ones((1, 40, 50, 3))  # smaller than the windows of stages 3 and 4
    outputs = nnx.eval_shape(lambda: model(image))
    queries = model.config.queries
    assert outputs.boxes.shape[-2:] == (queries, 4)
    with pytest.raises(ValueError, match=rf"Invalid images of 16 × 16: .* {queries} queries"):
        nnx.eval_shape(lambda: model(jnp.ones((1, 16, 16, 3))))
