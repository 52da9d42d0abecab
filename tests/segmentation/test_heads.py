"""UperNet's heads and losses against mmsegmentation's and transformers', float64.

`tests/reference/record_upernet.py` recorded theirs, which agree with each other to the bit.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.segmentation import resize as resizing
from fastervit_jax.segmentation import upernet
from fastervit_jax.segmentation.losses import segmentation_cross_entropy
from fastervit_jax.segmentation.upernet import UPERNET, AuxiliaryHead, Decoder
from fastervit_jax.weights.names import from_torch_layout, to_torch_layout, torch_name

WIDTHS, CHANNELS, AUXILIARY_CHANNELS, CLASSES = (8, 12, 16, 20), 8, 6, 5
TOLERANCE = 1e-9
AUXILIARY_WEIGHT = 0.4


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "upernet.npz") as file:
        return dict(file)


class Heads(nnx.Module):
    """Both heads, named as in the network."""

    def __init__(self):
        options = dict(dropout=0.0, dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.decoder = Decoder(WIDTHS, CHANNELS, CLASSES, **options)
        self.auxiliary = AuxiliaryHead(WIDTHS[2], AUXILIARY_CHANNELS, CLASSES, **options)

    def __call__(self, maps):
        return self.decoder(maps, None), self.auxiliary(maps[2], None)


def _torch_name(path) -> str:
    return torch_name(".".join(map(str, path)), UPERNET.torch_modules)


def heads() -> Heads:
    """With the recorded weights, all of which are used."""
    model = Heads()
    used = set()
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        name = "weights." + _torch_name(path)
        variable.set_value(jnp.asarray(from_torch_layout(recorded()[name])))
        used.add(name)
    theirs = {n for n in recorded() if n.startswith("weights.") and "num_batches" not in n}
    assert used == theirs
    return model


def maps() -> list[jax.Array]:
    return [jnp.asarray(recorded()[f"map_{i}"].transpose(0, 2, 3, 1)) for i in range(4)]


def _assert_close(ours, theirs):
    assert ours.dtype == np.float64
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("whose", ["", ".transformers"])
def test_logits(mode, whose):
    model = heads()
    model.eval() if mode == "infer" else model.train()
    for name, ours in zip(("decoder", "auxiliary"), model(maps()), strict=True):
        _assert_close(ours.transpose(0, 3, 1, 2), recorded()[f"{mode}.{name}{whose}"])


def _total(params, rest, graph, maps):
    # New variables, which belong to this trace.
    model = nnx.merge(graph, *jax.tree.map(lambda array: array, (params, rest)))
    labels = jnp.asarray(recorded()["labels"])
    decoder, auxiliary = (segmentation_cross_entropy(s, labels) for s in model(maps))
    return decoder + AUXILIARY_WEIGHT * auxiliary, (decoder, auxiliary)


def test_losses_and_gradients():
    model = heads()
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    gradient = jax.jit(jax.grad(_total, argnums=(0, 3), has_aux=True), static_argnums=2)
    (to_params, to_maps), (decoder, auxiliary) = gradient(params, rest, graph, maps())
    assert float(decoder) == pytest.approx(float(recorded()["loss.decoder"]), rel=TOLERANCE)
    theirs = float(recorded()["loss.auxiliary"])
    assert AUXILIARY_WEIGHT * float(auxiliary) == pytest.approx(theirs, rel=TOLERANCE)
    for path, variable in nnx.to_flat_state(to_params):
        ours = to_torch_layout(np.asarray(variable.get_value()))
        expected = recorded()["gradient." + _torch_name(path)]
        # Gradients of a kernel before a batch norm can be small beside their terms: the largest
        # allowed difference is at least 1e-12.
        assert np.abs(ours - expected).max() <= TOLERANCE * max(1e-3, np.abs(expected).max()), path
    for index, each in enumerate(to_maps):
        _assert_close(each.transpose(0, 3, 1, 2), recorded()[f"gradient.map_{index}"])


def test_transformers_loss_is_the_mean_over_labeled_pixels():
    scores = jnp.asarray(recorded()["train.decoder"].transpose(0, 2, 3, 1))
    loss = segmentation_cross_entropy(
        scores, jnp.asarray(recorded()["labels"]), count_ignored=False
    )
    theirs = float(recorded()["loss.decoder.transformers"])
    assert float(loss) == pytest.approx(theirs, rel=TOLERANCE)


def _aligned_corners(size: int, new_size: int) -> np.ndarray:
    matrix = np.zeros((new_size, size))
    for row in range(new_size):
        place = row * (size - 1) / max(1, new_size - 1)
        below = min(int(place), size - 1)
        matrix[row, below] += 1 - (place - below)
        matrix[row, min(below + 1, size - 1)] += place - below
    return matrix


def test_other_resizing_or_pooling_would_be_seen(monkeypatch):
    """The comparison can fail: align_corners, and a pyramid with other parts, move the logits."""
    theirs = recorded()["infer.decoder"].transpose(0, 2, 3, 1)

    def difference() -> float:
        model = heads()
        model.eval()
        return np.abs(np.asarray(model(maps())[0]) - theirs).max() / np.abs(theirs).max()

    assert difference() <= TOLERANCE
    with monkeypatch.context() as patch:
        patch.setattr(resizing, "bilinear_matrix", _aligned_corners)
        assert difference() > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(upernet, "POOL_SIZES", (1, 2, 3, 4))
        assert difference() > 1e-3


def test_convolution_of_resized_maps():
    """It is what it is named: maps resized, concatenated, convolved. So are the gradients."""
    random = np.random.default_rng(0)
    size = (13, 10)
    shapes = [(13, 10, 3), (7, 5, 4), (1, 1, 2), (20, 12, 5)]
    maps = [jnp.asarray(random.standard_normal((2, *shape))) for shape in shapes]
    kernel = jnp.asarray(random.standard_normal((3, 3, sum(shape[-1] for shape in shapes), 6)))
    cotangent = jnp.asarray(random.standard_normal((2, *size, 6)))

    def plainly(maps, kernel):
        whole = jnp.concatenate([resizing.resize(x, size) for x in maps], axis=-1)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            whole, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    def together(maps, kernel):
        return resizing.convolve_resized(maps, size, kernel)

    def both(maps, kernel, cotangent):
        out, backward = zip(*(jax.vjp(f, maps, kernel) for f in (together, plainly)), strict=True)
        return [
            (each, *jax.tree.leaves(f(cotangent))) for each, f in zip(out, backward, strict=True)
        ]

    for one, other in zip(*jax.jit(both)(maps, kernel, cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.abs(other).max())
