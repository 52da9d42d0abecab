"""Mixing, normalization and erasing against timm's: results for equal draws, and the draws.

Distributions are compared at the 0.1 % level, 20,000 draws of ours with 100,000 of timm's; every
such comparison is shown to fail on a planted wrong distribution.
"""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fastervit_jax.augmentation.device import IMAGENET_MEAN, IMAGENET_STD, normalize
from fastervit_jax.augmentation.erasing import apply_erasing, draw_erasing
from fastervit_jax.augmentation.mixing import MixingDraw, apply_mixing, draw_mixing

torch = pytest.importorskip("torch")
timm_mixup = pytest.importorskip("timm.data.mixup")
timm_erasing = pytest.importorskip("timm.data.random_erasing")
timm_loader = pytest.importorskip("timm.data.loader")

LEVEL = 1e-3
DRAWS, TIMM_DRAWS = 20_000, 100_000
KEY = jax.random.key(0)
RECIPE = dict(
    mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch", label_smoothing=0.1
)


# --- equal draws, equal results -------------------------------------------------------------------


def timm_mix(images, labels, monkeypatch, num_classes):
    """timm's collated batch, and what it drew; lambda is rounded to float32, as ours is."""
    drawn = {"box": (0, 0, 0, 0)}
    draw_parameters = timm_mixup.Mixup._params_per_batch
    draw_box = timm_mixup.cutmix_bbox_and_lam

    def parameters(self):
        lam, drawn["use_cutmix"] = draw_parameters(self)
        drawn["lam"] = float(np.float32(lam))
        return drawn["lam"], drawn["use_cutmix"]

    def box(*args, **kwargs):
        drawn["box"], drawn["lam"] = draw_box(*args, **kwargs)
        return drawn["box"], drawn["lam"]

    monkeypatch.setattr(timm_mixup.Mixup, "_params_per_batch", parameters)
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", box)
    collate = timm_mixup.FastCollateMixup(**RECIPE, num_classes=num_classes)
    channels_first = images.transpose(0, 3, 1, 2)
    mixed, soft = collate(list(zip(channels_first, labels, strict=True)))
    monkeypatch.undo()
    return mixed.numpy().transpose(0, 2, 3, 1), soft.numpy(), drawn


def test_mixing_equals_timm_pixel_by_pixel(monkeypatch):
    rng = np.random.default_rng(0)
    apply = jax.jit(lambda *arguments: apply_mixing(*arguments, num_classes=10, smoothing=0.1))
    seen = {True: 0, False: 0}
    for seed in range(40):
        np.random.seed(seed)
        images = rng.integers(0, 256, (2, 8, 40, 56, 3), np.uint8)
        labels = rng.integers(0, 10, (2, 8))
        groups = [timm_mix(*group, monkeypatch, 10) for group in zip(images, labels, strict=True)]
        drawn = [group[2] for group in groups]
        draw = MixingDraw(
            lam=jnp.array([d["lam"] for d in drawn], jnp.float32),
            use_cutmix=jnp.array([d["use_cutmix"] for d in drawn]),
            boxes=jnp.array([d["box"] for d in drawn]),
        )
        mixed, soft = apply(images.reshape(16, 40, 56, 3), labels.reshape(16), draw)
        np.testing.assert_array_equal(mixed, np.concatenate([group[0] for group in groups]))
        np.testing.assert_allclose(soft, np.concatenate([group[1] for group in groups]), atol=1e-7)
        for d in drawn:
            seen[bool(d["use_cutmix"])] += 1
    assert min(seen.values()) >= 20


def test_mixup_rounds_every_pair_of_levels_as_timm_does():
    """Also where product and sum must not share one rounding: 200 lambdas, all 65,536 pairs."""
    own, partner = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    images = np.stack([own, partner])[..., None]
    apply = jax.jit(lambda *arguments: apply_mixing(*arguments, num_classes=2)[0])
    for lam in np.random.default_rng(0).beta(0.8, 0.8, 200).astype(np.float32):
        # The two lines of timm's `_mix_batch_collate`.
        blend = own.astype(np.float32) * float(lam) + partner.astype(np.float32) * (1 - float(lam))
        expected = np.rint(blend).astype(np.uint8)
        draw = MixingDraw(jnp.array([lam]), jnp.array([False]), jnp.zeros((1, 4), int))
        got = apply(images, jnp.array([0, 1]), draw)[0, ..., 0]
        np.testing.assert_array_equal(got, expected)


def test_normalization_and_erasing_equal_timm_loader():
    """timm's own device-side loader, its noise and rectangles read off what it erased."""
    images = np.random.default_rng(0).integers(0, 256, (64, 48, 40, 3), np.uint8)
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def load(probability):
        loader = timm_loader.PrefetchLoader(
            [(batch, torch.zeros(64))],
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            device=torch.device("cpu"),
            re_prob=probability,
            re_mode="pixel",
        )
        return next(iter(loader))[0].numpy().transpose(0, 2, 3, 1)

    normalized = load(0.0)
    ours = normalize(jnp.asarray(images))
    np.testing.assert_allclose(ours, normalized, atol=5e-7)

    random.seed(0)
    torch.manual_seed(0)
    erased = load(0.25)
    changed = (erased != normalized).any(-1)
    boxes = np.zeros((64, 4), int)
    for box, mask in zip(boxes, changed, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[:] = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert 5 < (boxes[:, 1] > 0).sum() < 30
    got = apply_erasing(jnp.asarray(normalized), jnp.asarray(boxes), jnp.asarray(erased))
    np.testing.assert_array_equal(got, erased)


# --- the distributions of the draws ---------------------------------------------------------------

HEIGHT, WIDTH = 224, 160


def same_distribution(ours, theirs):
    return stats.ks_2samp(ours, theirs, method="asymp").pvalue > LEVEL


def geometry(boxes):
    top, bottom, left, right = np.asarray(boxes, np.float64).T
    height, width = bottom - top, right - left
    return {
        "top": top,
        "bottom": bottom,
        "left": left,
        "right": right,
        "height": height,
        "width": width,
        "area": height * width,
        "aspect": height / np.maximum(width, 1),
    }


def differing(ours, theirs):
    return {name for name in theirs if not same_distribution(ours[name], theirs[name])}


@pytest.fixture(scope="module")
def timm_mixing_draws():
    np.random.seed(0)
    mixup = timm_mixup.Mixup(**RECIPE, num_classes=10)
    lam, use_cutmix = map(
        np.array, zip(*(mixup._params_per_batch() for _ in range(TIMM_DRAWS)), strict=True)
    )
    boxes, corrected = zip(
        *(timm_mixup.cutmix_bbox_and_lam((3, HEIGHT, WIDTH), value) for value in lam[use_cutmix]),
        strict=True,
    )
    return {
        "rate": use_cutmix.mean(),
        "mixup": {"lam": lam[~use_cutmix]},
        "cutmix": {"lam": np.array(corrected, np.float32), **geometry(boxes)},
    }


def our_mixing_draws(image_size=(HEIGHT, WIDTH), **settings):
    draw = draw_mixing(KEY, jnp.arange(DRAWS), image_size=image_size, **settings)
    lam, use_cutmix, boxes = map(np.asarray, draw)
    return {
        "rate": use_cutmix.mean(),
        "mixup": {"lam": lam[~use_cutmix]},
        "cutmix": {"lam": lam[use_cutmix], **geometry(boxes[use_cutmix])},
    }


def same_rate(ours, theirs):
    table = np.array([[ours, 1 - ours], [theirs, 1 - theirs]]) * [[DRAWS], [TIMM_DRAWS]]
    return stats.chi2_contingency(table).pvalue > LEVEL


def test_mixing_draws_are_distributed_as_timm(timm_mixing_draws):
    ours = our_mixing_draws()
    assert same_rate(ours["rate"], timm_mixing_draws["rate"])
    for kind in ("mixup", "cutmix"):
        assert not differing(ours[kind], timm_mixing_draws[kind])


@pytest.mark.parametrize(
    ("wrong", "kind", "shows_in"),
    [
        (dict(mixup_alpha=1.0), "mixup", {"lam"}),
        (dict(cutmix_alpha=0.8), "cutmix", {"lam", "area"}),
        # The box's center no longer reaches the last rows, nor a tenth of the columns.
        (dict(image_size=(HEIGHT - 24, WIDTH)), "cutmix", {"bottom"}),
        (dict(image_size=(HEIGHT, WIDTH - 16)), "cutmix", {"right"}),
    ],
)
def test_wrong_mixing_draws_are_noticed(timm_mixing_draws, wrong, kind, shows_in):
    ours = our_mixing_draws(**wrong)
    assert shows_in <= differing(ours[kind], timm_mixing_draws[kind])


def test_wrong_switch_rate_is_noticed(timm_mixing_draws):
    ours = our_mixing_draws(switch_probability=0.53)
    assert not same_rate(ours["rate"], timm_mixing_draws["rate"])


class RecordedImage:
    """Stands for an image: keeps the rectangle that timm erases."""

    def __init__(self):
        self.box = (0, 0, 0, 0)

    def __setitem__(self, where, value):
        _, rows, columns = where
        self.box = (rows.start, rows.stop, columns.start, columns.stop)


@pytest.fixture(scope="module")
def timm_rectangles():
    random.seed(0)
    # Mode "const" draws the same rectangles and spares the noise.
    erasing = timm_erasing.RandomErasing(probability=0.25, mode="const", device="cpu")
    boxes = []
    for _ in range(TIMM_DRAWS):
        image = RecordedImage()
        erasing._erase(image, 3, HEIGHT, WIDTH, torch.float32)
        boxes.append(image.box)
    return rectangles(np.array(boxes))


def rectangles(boxes):
    erased = boxes[:, 1] > boxes[:, 0]
    return {"rate": erased.mean(), "boxes": geometry(boxes[erased])}


def our_rectangles(**settings):
    boxes = draw_erasing(KEY, jnp.arange(DRAWS), image_size=(HEIGHT, WIDTH), **settings)
    return rectangles(np.asarray(boxes))


def test_erasing_draws_are_distributed_as_timm(timm_rectangles):
    ours = our_rectangles()
    assert same_rate(ours["rate"], timm_rectangles["rate"])
    assert not differing(ours["boxes"], timm_rectangles["boxes"])


def test_wrong_erasing_draws_are_noticed(timm_rectangles):
    wrong_rate = our_rectangles(probability=0.27)["rate"]
    assert not same_rate(wrong_rate, timm_rectangles["rate"])
    for wrong, shows_in in [
        (dict(area=(0.02, 0.4)), {"area"}),
        (dict(area=(0.0001, 1 / 3)), {"area"}),
        (dict(aspect=(0.3, 2.0)), {"aspect"}),
        (dict(aspect=(0.5, 1 / 0.3)), {"aspect"}),
    ]:
        assert shows_in <= differing(our_rectangles(**wrong)["boxes"], timm_rectangles["boxes"])
