"""Matching, losses, their gradients and denoising queries against mmdet 3.3.0, float64.

`tests/reference/record_mmdet.py` recorded mmdet's values, with the same outputs and draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.detection.criterion import GroundTruth, all_losses, total_loss
from fastervit_jax.detection.denoising import (
    DenoisingSettings,
    blocked,
    layout,
    noisy_references,
)
from fastervit_jax.detection.dino import Outputs
from fastervit_jax.detection.losses import BOX_WEIGHT, GIOU_WEIGHT
from fastervit_jax.detection.matching import match
from tests.detection.golden_files import GOLDEN
from tests.quick_compilation import quick_jit

COUNTS = (4, 0, 2)
QUERIES = 20
LARGEST = 6  # more than there are, so that padding is there
SETTINGS = DenoisingSettings(queries=20, box_noise=0.4)
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mmdet.npz") as file:
        return dict(file)


def truth() -> GroundTruth:
    labels = np.zeros((3, LARGEST), np.int32)
    boxes = np.zeros((3, LARGEST, 4))
    for image, count in enumerate(COUNTS):
        labels[image, :count] = recorded()[f"labels_{image}"]
        boxes[image, :count] = recorded()[f"boxes_{image}"]
    return GroundTruth(jnp.asarray(labels), jnp.asarray(boxes), jnp.asarray(COUNTS))


def where():
    """Slots of our program; mmdet's batch has the first 16 of them."""
    return layout(jnp.asarray(COUNTS), SETTINGS.slots(LARGEST), SETTINGS, per_gpu=3)


def padded(array: np.ndarray, axis: int, value=0.0) -> jax.Array:
    """mmdet's denoising queries, followed by slots that are not used."""
    slots = SETTINGS.slots(LARGEST)
    used = recorded()["noisy_labels"].shape[1]
    extra = np.full(np.insert(np.delete(array.shape, axis), axis, slots - used), value)
    first, rest = np.split(array, [used], axis=axis)
    return jnp.asarray(np.concatenate([first, extra, rest], axis=axis))


def outputs(logits, raw, selected_logits, selected_raw) -> Outputs:
    return Outputs(logits, jax.nn.sigmoid(raw), selected_logits, jax.nn.sigmoid(selected_raw))


def raw_outputs():
    r = recorded()
    # Large values in unused slots would be seen.
    logits, raw = padded(r["logits"], 2, 3.0), padded(r["raw"], 2, 3.0)
    return logits, raw, jnp.asarray(r["selected_logits"]), jnp.asarray(r["selected_raw"])


def test_layout():
    assert SETTINGS.slots(LARGEST) == 20
    known = where()
    assert set(known.groups.tolist()) == {int(recorded()["groups"])}
    labels = recorded()["noisy_labels"]
    np.testing.assert_array_equal(known.used, np.arange(20)[None].repeat(3, 0) < 16)
    # mmdet's queries without a box have the label 0; we recorded labels counted from 1.
    np.testing.assert_array_equal(known.real[:, :16], labels > 0)
    np.testing.assert_array_equal(known.positive[0, :16], np.arange(16) % 8 < 4)
    # Most labels are those of the boxes, which shows that boxes are in the same order.
    ours = jnp.take_along_axis(truth().labels, known.box, axis=1)[:, :16]
    same = (np.asarray(ours) == labels - 1)[labels > 0]
    assert 0.5 < same.mean() < 1


def test_references():
    known = where()
    boxes = jnp.take_along_axis(truth().boxes, known.box[..., None], axis=1)[:, :16]
    # mmdet's moves are shares of the whole width, which it then halves.
    ours = noisy_references(boxes, jnp.asarray(recorded()["moves"]) * SETTINGS.box_noise)
    real = np.asarray(known.real)[:, :16]
    expected = recorded()["noisy_references"]
    np.testing.assert_allclose(ours[real], expected[real], rtol=0, atol=TOLERANCE)
    moves = np.abs(recorded()["moves"])
    positive = np.asarray(known.positive)[:, :16]
    assert moves[real & positive].max() < 1 <= moves[real & ~positive].min()


def test_mask():
    used = 16
    ours = np.asarray(blocked(where(), QUERIES))
    keep = [*range(used), *range(20, 20 + QUERIES)]
    for image in range(3):
        np.testing.assert_array_equal(ours[image][np.ix_(keep, keep)], recorded()["mask"])
    assert ours[:, keep][:, :, used:20].all(), "nothing sees an unused slot"
    assert not ours[:, range(used, 20), range(used, 20)].any(), "which sees itself"


def test_pairs():
    """Every box gets the query that mmdet gives it, in all outputs."""
    logits, raw, selected_logits, selected_raw = raw_outputs()
    known, slots = truth(), SETTINGS.slots(LARGEST)
    pairs_of = quick_jit(match)
    every = [(logits[i, :, slots:], raw[i, :, slots:]) for i in range(3)]
    every.append((selected_logits, selected_raw))
    for output, (own_logits, own_raw) in enumerate(every):
        query = np.asarray(pairs_of(own_logits, jax.nn.sigmoid(own_raw), *known))
        for image, count in enumerate(COUNTS):
            theirs = recorded()["pairs"][3 * output + image]
            assert (theirs >= 0).sum() == count
            np.testing.assert_array_equal(theirs[query[image, :count]], np.arange(count))


@functools.cache
def computed():
    """Total loss, losses by output, and gradients of the total."""
    known = where()

    def run(*raw):
        losses = all_losses(outputs(*raw), truth(), known)
        return total_loss(losses, truth(), known)["loss"].sum() / sum(COUNTS), losses

    of_raw = quick_jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))
    (total, losses), gradients = of_raw(*raw_outputs())
    return total, losses, gradients


def losses_by_name() -> dict[str, float]:
    """Ours by mmdet's names: weighted, divided by the number of boxes (and groups)."""
    known = where()
    _, losses, _ = computed()
    names = {"last": "", "layer0": "d0.", "layer1": "d1.", "selected": "enc_"}
    names |= {"denoising0": "d0.dn_", "denoising1": "d1.dn_", "denoising2": "dn_"}
    assert names.keys() == losses.keys()
    result = {}
    for name, each in losses.items():
        divisor = sum(COUNTS) * (int(known.groups[0]) if name.startswith("denoising") else 1)
        weighted = (each.classes, BOX_WEIGHT * each.boxes, GIOU_WEIGHT * each.giou)
        for part, value in zip(("cls", "bbox", "iou"), weighted, strict=True):
            result[f"{names[name]}loss_{part}"] = float(value.sum()) / divisor
    return result


def test_losses():
    expected = {k[5:]: v.item() for k, v in recorded().items() if k.startswith("loss_")}
    ours = losses_by_name()
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        # mmdet adds 1e-6 to unions.
        assert ours[name] == pytest.approx(value, rel=1e-5), name


def test_total_and_gradients():
    value, _, gradients = computed()
    expected = sum(v.item() for k, v in recorded().items() if k.startswith("loss_"))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for name, ours in zip(
        ("logits", "raw", "selected_logits", "selected_raw"), gradients, strict=True
    ):
        theirs = recorded()[f"gradient_{name}"]
        if not name.startswith("selected"):
            assert not np.asarray(ours)[:, :, 16:20].any(), "unused slots get no gradient"
            ours = np.delete(np.asarray(ours), range(16, 20), axis=2)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
