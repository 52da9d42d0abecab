"""Whole evaluations against the official network under timm's own data set, loader and metrics."""

import functools
import importlib.resources
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.data import RealLabelsImagenet, create_dataset, create_loader
from timm.utils import accuracy

from fastervit_jax.data import EvalTransform, Example
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.evaluation.evaluator import Evaluation, Predictions
from fastervit_jax.evaluation.imagenet_classes import IMAGENET_A, IMAGENET_R, imagenet_1k
from fastervit_jax.evaluation.real_labels import RealLabels, judged_by
from fastervit_jax.evaluation.run import EvaluationOptions, evaluate_set
from fastervit_jax.weights.loading import describe
from tests.data.photographs import encode
from tests.evaluation.photo_folders import pieces
from tests.reference.official import official_model, our_model, to_torch

NAME = "faster_vit_0_224"
SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 2), resolution=128, window_size=(4, 4, 4, 4))
IMAGES = 120
PLACES_OF_A = [imagenet_1k().index(identifier) for identifier in IMAGENET_A]
CROPS = [("center", 0.875), ("squash", 0.95)]


class Photographs:
    """Photographs in class folders, and the official network, which knows about half of them.

    With informative weights a network gives nearly every photograph the same answer. Its head is
    shifted by the mean logits, so that answers vary, and in favour of ImageNet-A's classes. Each
    photograph is filed under the best of those for a view of it that no evaluation below uses.
    """

    def __init__(self, root, name, options, images):
        self.name, self.options = name, options
        self.model = official_model(name, **options).float()
        resolution = options.get("resolution", 224)
        view = EvalTransform(resolution, 1.0, "center")
        files = [encode(piece, "JPEG", quality=90) for piece in itertools.islice(pieces(), images)]
        logits = np.concatenate([self._logits([view(f) for f in part]) for part in _parts(files)])
        shift = -logits.mean(axis=0)
        shift[PLACES_OF_A] += logits.std(axis=0).mean()
        with torch.no_grad():
            self.model.head.bias += torch.from_numpy(shift)
        answers = (logits + shift)[:, PLACES_OF_A].argmax(axis=1)
        self.folder = root / "photographs"
        for number, (data, answer) in enumerate(zip(files, answers, strict=True)):
            file = self.folder / IMAGENET_A[answer] / f"{number:03d}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def _logits(self, images):
        normalized = (np.stack(images) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        with torch.no_grad():
            return self.model(to_torch(normalized.astype(np.float32))).numpy()

    def official(self, crop_mode, crop_fraction, valid_labels=None):
        """What the official script computes, in float32: best classes, counts and mean loss.

        Class folders get their places among ImageNet's classes (`--class-map`), or among those of
        `valid_labels`, places of the classes that answers are taken over.
        """
        classes = [imagenet_1k()[place] for place in valid_labels or range(1000)]
        dataset = create_dataset(
            "", str(self.folder), class_map={c: i for i, c in enumerate(classes)}
        )
        side = self.options.get("resolution", 224)
        loader = create_loader(
            dataset,
            input_size=(3, side, side),
            batch_size=50,
            use_prefetcher=True,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            num_workers=0,
            crop_pct=crop_fraction,
            crop_mode=crop_mode,
            device=torch.device("cpu"),
            persistent_workers=False,
        )
        best, counts, loss = [], np.zeros(2), 0.0
        with torch.no_grad():
            for batch, target in loader:
                logits = self.model(batch)
                if valid_labels:
                    logits = logits[:, valid_labels]
                shares = accuracy(logits, target, topk=(1, 5))
                counts += [float(share) * len(target) / 100 for share in shares]
                loss += float(torch.nn.functional.cross_entropy(logits, target)) * len(target)
                best.append(logits.topk(5).indices.numpy())
        whole = np.round(counts).astype(int)
        np.testing.assert_allclose(counts, whole, atol=1e-3)
        best = np.concatenate(best)
        return best, (len(best), *whole.tolist()), loss / len(best)

    @functools.cache  # noqa: B019
    def ours(self, spec, crop=None, dtype=jnp.float32, **more):
        """Our evaluation, as eval.py does it."""
        model = our_model(self.name, self.model, dtype=dtype, **self.options)
        info = describe(model, self.name)
        task = open_evaluation_set(spec, model_classes=None, num_logits=1000)
        if crop:
            more |= dict(crop_mode=crop[0], crop_fraction=crop[1])
        options = EvaluationOptions(batch_size=48, **more)
        return evaluate_set(model, info, task, options=options).evaluation


def _parts(files, size=60):
    return [files[start : start + size] for start in range(0, len(files), size)]


def compare(ours, official, record_property):
    best, counts, loss = official
    hit = ours.predictions.hit
    text = f"images, top-1, top-5: {counts}; losses differ by {abs(ours.loss - loss):.1e}"
    record_property("official evaluation", text)
    print(text)
    assert (ours.images, hit[:, 0].sum(), hit.any(axis=1).sum()) == counts
    assert (ours.top1, ours.top5) == pytest.approx((counts[1] / counts[0], counts[2] / counts[0]))
    assert abs(ours.loss - loss) < 1e-5
    np.testing.assert_array_equal(ours.predictions.top, best)
    # The comparison means something: many are right, many are wrong, and answers vary.
    assert 0.1 < ours.top1 < ours.top5 < 0.95
    assert len(np.unique(best[:, 0])) > 10


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return Photographs(tmp_path_factory.mktemp("photographs"), NAME, SMALL, IMAGES)


@pytest.mark.parametrize("crop", CROPS)
def test_counts_equal_and_loss_agrees(photographs, crop, record_property):
    compare(
        photographs.ours(f"folder:{photographs.folder}", crop),
        photographs.official(*crop),
        record_property,
    )


def test_label_subset(photographs, record_property):
    """ImageNet-A: answers over 200 of the classes, with the robustness sets' crop."""
    ours = photographs.ours(f"imagenet-a:folder:{photographs.folder}")
    official = photographs.official("center", 0.875, valid_labels=PLACES_OF_A)
    compare(ours, official, record_property)


@pytest.mark.slow
def test_deployed_network_gives_the_same_counts(photographs):
    whole, folded = (
        photographs.ours(f"folder:{photographs.folder}", CROPS[0], deploy=deploy)
        for deploy in (False, True)
    )
    np.testing.assert_array_equal(folded.predictions.top, whole.predictions.top)
    assert abs(folded.loss - whole.loss) < 1e-5
    assert not np.array_equal(folded.predictions.loss, whole.predictions.loss)


BFLOAT16_LIMIT = 0.02
"""Error of bfloat16 logits, as a share of the largest (`test_bfloat16.py`)."""


@pytest.mark.slow
def test_bfloat16(photographs, record_property):
    """Answers change only where the two best logits are within bfloat16's error."""
    exact, rough = (
        photographs.ours(f"folder:{photographs.folder}", CROPS[0], dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    changed = exact.predictions.top[:, 0] != rough.predictions.top[:, 0]
    # The logarithm of two probabilities' ratio is the distance of their logits.
    distance = np.log(exact.predictions.probability[:, 0] / exact.predictions.probability[:, 1])
    largest = np.abs(photographs.model.head.bias.detach().numpy()).max()
    clear = distance > BFLOAT16_LIMIT * largest
    text = (
        f"{changed.sum()} of {len(changed)} answers change, at distances up to "
        f"{distance[changed].max(initial=0):.3f}; {clear.sum()} distances are clear"
    )
    record_property("bfloat16", text)
    print(text)
    assert clear.sum() > IMAGES / 10
    assert not changed[clear].any()
    assert exact.loss != rough.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("crop", CROPS)
def test_the_real_number_0(tmp_path, crop, record_property):
    real = Photographs(tmp_path, NAME, {}, 300)
    compare(real.ours(f"folder:{real.folder}", crop), real.official(*crop), record_property)


def test_identifiers_are_timms():
    """Order of the logits, and the 200 classes of ImageNet-A and -R."""
    data = importlib.resources.files("timm.data") / "_info"

    def identifiers(name):
        return tuple((data / name).read_text().split())

    assert imagenet_1k() == identifiers("imagenet_synsets.txt")
    assert identifiers("imagenet_a_synsets.txt") == IMAGENET_A
    assert identifiers("imagenet_r_synsets.txt") == IMAGENET_R
    for name, classes in (("imagenet_a", IMAGENET_A), ("imagenet_r", IMAGENET_R)):
        places = [int(place) for place in identifiers(f"{name}_indices.txt")]
        assert [imagenet_1k()[place] for place in places] == list(classes)


def test_real_labels_are_judged_as_by_timm(tmp_path):
    """Random answers for all of ImageNet's validation images, with the true ReaL labels."""
    data = importlib.resources.files("timm.data") / "_info" / "imagenet_real_labels.json"
    by_number = json.loads(data.read_text())
    rng = np.random.default_rng(0)
    names = [f"ILSVRC2012_val_{number + 1:08d}.JPEG" for number in range(len(by_number))]
    scores = torch.from_numpy(rng.random((len(names), 1000), np.float32))
    for row, right in enumerate(by_number):
        if right and row % 2:
            scores[row, right[-1]] = 1.5
    theirs = RealLabelsImagenet(names)
    theirs.add_result(scores)
    top = scores.topk(5).indices.numpy()
    source = [Example(b"", 0, name) for name in names]
    ours = judged_by(
        RealLabels(source, by_number, tuple(range(1000))),
        Evaluation.of(
            Predictions(
                index=np.arange(len(names)),
                label=top[:, 0],
                top=top,
                probability=np.ones(top.shape),
                loss=np.zeros(len(names)),
                hit=top == top[:, :1],
                counted=np.ones(len(names), bool),
            )
        ),
    )
    assert (100 * ours.top1, 100 * ours.top5) == pytest.approx(
        (theirs.get_accuracy(1), theirs.get_accuracy(5))
    )
    assert 0.4 < ours.top1 < ours.top5 < 0.6
    assert len(names) - ours.predictions.counted.sum() == 3163
