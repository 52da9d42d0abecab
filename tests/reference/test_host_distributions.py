"""The host's random draws against timm 0.9.16's: every distribution.

20,000 draws each, compared by Kolmogorov–Smirnov (continuous) and χ² (counts). Every comparison is
also made with a wrong distribution planted, and must notice it.
"""

import collections
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation

from fastervit_jax.augmentation.host import TrainTransform, draw_crop_box
from fastervit_jax.augmentation.operations import GEOMETRIC, Operation
from fastervit_jax.augmentation.rand_augment import RandAugment, parse_rand_augment
from tests.data.photographs import encode

RECIPE = "rand-m9-mstd0.5-inc1"
DRAWS = 20_000
# A comparison with the true distribution must give more than AGREES, with a wrong one less than
# DIFFERS. The draws are seeded, so that the outcome is fixed.
AGREES, DIFFERS = 1e-3, 1e-8
TIMM_FILL = (124, 116, 104)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def same_continuous(ours, theirs) -> float:
    """Two-sample Kolmogorov–Smirnov."""
    return stats.ks_2samp(ours, theirs).pvalue


def same_counts(ours, theirs) -> float:
    """χ² of homogeneity of two samples of categories."""
    counts = [collections.Counter(sample) for sample in (ours, theirs)]
    categories = set(counts[0]) | set(counts[1])
    table = [[count[category] for category in categories] for count in counts]
    return stats.chi2_contingency(table).pvalue


def boxes_features(boxes, height, width):
    """Area share, log aspect, and place of boxes [N, 4] of (top, left, height, width)."""
    top, left, h, w = np.asarray(boxes, float).T
    with np.errstate(invalid="ignore"):
        features = {
            "area": h * w / (height * width),
            "aspect": np.log(w / h),
            "vertical place": np.where(h < height, top / (height - h), np.nan),
            "horizontal place": np.where(w < width, left / (width - w), np.nan),
        }
    return {name: values[~np.isnan(values)] for name, values in features.items()}


def our_boxes(height, width, *, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), seed=0):
    rng = np.random.default_rng(seed)
    boxes = [draw_crop_box(height, width, scale=scale, ratio=ratio, rng=rng) for _ in range(DRAWS)]
    return [(b.top, b.left, b.height, b.width) for b in boxes]


def timm_boxes(height, width):
    random.seed(1)
    image = Image.new("RGB", (width, height))
    crop = RandomResizedCropAndInterpolation(224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    return [crop.get_params(image, crop.scale, crop.ratio) for _ in range(DRAWS)]


@pytest.fixture(scope="module")
def timm_crops():
    return {size: timm_boxes(*size) for size in ((375, 500), (100, 260), (400, 400))}


@pytest.mark.parametrize("size", [(375, 500), (100, 260)], ids=str)
def test_crop_boxes_are_distributed_as_timms(timm_crops, size):
    """On a photograph's shape, and on one so wide that most attempts fail."""
    ours = boxes_features(our_boxes(*size), *size)
    theirs = boxes_features(timm_crops[size], *size)
    for name in ours:
        assert same_continuous(ours[name], theirs[name]) > AGREES, name


@pytest.mark.parametrize(
    ("feature", "wrong"),
    [
        ("area", {"scale": (0.12, 1.0)}),
        ("aspect", {"ratio": (0.8, 1.25)}),
        ("vertical place", "centred"),
        ("aspect", "uniform instead of log-uniform"),
    ],
    ids=str,
)
def test_planted_wrong_crop_boxes_are_noticed(timm_crops, feature, wrong):
    size = (400, 400)
    if isinstance(wrong, dict):
        boxes = our_boxes(*size, **wrong)
    elif wrong == "centred":  # the mean of two uniform places
        pairs = zip(our_boxes(*size), our_boxes(*size, seed=5), strict=True)
        boxes = [
            ((a[0] + (size[0] - a[2]) * b[0] / max(1, size[0] - b[2])) / 2, *a[1:])
            for a, b in pairs
        ]
    else:
        rng = np.random.default_rng(0)
        areas = rng.uniform(0.08, 0.5, DRAWS) * size[0] * size[1]
        aspects = rng.uniform(3 / 4, 4 / 3, DRAWS)
        sides = [(math.sqrt(a / r), math.sqrt(a * r)) for a, r in zip(areas, aspects, strict=True)]
        boxes = [(0, 0, *pair) for pair in sides]
    ours = boxes_features(boxes, *size)[feature]
    assert same_continuous(ours, boxes_features(timm_crops[size], *size)[feature]) < DIFFERS


def timm_operations(text: str) -> list[list[Operation]]:
    """What timm's own RandAugment draws: its operations replaced by notes of their arguments."""
    random.seed(2)
    np.random.seed(3)
    transform = auto_augment.rand_augment_transform(text, {"img_mean": TIMM_FILL})
    noted = []

    def note(op):
        name = op.name.removesuffix("Increasing").removesuffix("Rel")

        def aug_fn(image, *arguments, **keywords):
            resampling = auto_augment._interpolation(keywords) if name in GEOMETRIC else None
            noted.append(Operation(name, *arguments or (None,), resampling))
            return image

        op.aug_fn = aug_fn

    for op in transform.ops:
        note(op)
    drawn = []
    for _ in range(DRAWS):
        transform(None)
        drawn.append(list(noted))
        noted.clear()
    return drawn


def our_operations(text: str, **changed) -> list[list[Operation]]:
    augment = parse_rand_augment(text)
    augment = RandAugment(**{**vars(augment), **changed})
    rng = np.random.default_rng(4)
    return [augment.draw(rng) for _ in range(DRAWS)]


def operation_features(drawn: list[list[Operation]]) -> dict[str, tuple[str, list]]:
    """What the comparisons look at, by name, each with the test it takes."""
    flat = [operation for operations in drawn for operation in operations]

    def arguments(*names):
        return [op.argument for op in flat if op.name in names]

    # Arguments that tell the magnitude, whatever their sign.
    magnitudes = [abs(a) / 3.0 for a in arguments("Rotate")]
    magnitudes += [abs(a) / 0.03 for a in arguments("ShearX", "ShearY")]
    magnitudes += [abs(a) / 0.045 for a in arguments("TranslateX", "TranslateY")]
    return {
        "applied": ("counts", [len(operations) for operations in drawn]),
        "operation": ("counts", [op.name for op in flat]),
        "pair": (
            "counts",
            [ops[0].name == ops[1].name for ops in drawn if len(ops) == 2],
        ),
        "sign": ("counts", [a > 0 for a in arguments(*GEOMETRIC)]),
        "filter": ("counts", [str(op.resampling) for op in flat if op.resampling is not None]),
        "magnitude": ("continuous", magnitudes),
        "magnitude at its bound": ("counts", [m >= 10 - 1e-9 for m in magnitudes]),
        "rotation": ("continuous", arguments("Rotate")),
        "shear": ("continuous", arguments("ShearX", "ShearY")),
        "translation": ("continuous", arguments("TranslateX", "TranslateY")),
        "enhancement": ("continuous", arguments("Color", "Contrast", "Brightness", "Sharpness")),
        "solarize": ("counts", arguments("Solarize")),
        "solarize add": ("counts", arguments("SolarizeAdd")),
        "posterize": ("counts", arguments("Posterize")),
    }


def compare(ours, theirs, feature) -> float:
    kind, sample = operation_features(ours)[feature]
    other = operation_features(theirs)[feature][1]
    return (same_counts if kind == "counts" else same_continuous)(sample, other)


@pytest.fixture(scope="module")
def timm_recipe():
    return timm_operations(RECIPE)


def test_operations_are_distributed_as_timms(timm_recipe):
    ours = our_operations(RECIPE)
    for feature in operation_features(ours):
        assert compare(ours, timm_recipe, feature) > AGREES, feature


@pytest.mark.parametrize(
    ("feature", "changed"),
    [
        ("applied", {"probability": 0.46}),
        ("operation", {"weights": (0.1, *[0.9 / 14] * 14)}),
        ("pair", {"weights": (1 / 15,) * 15}),  # drawn without replacement
        ("magnitude", {"magnitude_std": 0.4}),
        ("rotation", {"magnitude": 8}),
        ("enhancement", {"increasing": False}),
        ("posterize", {"increasing": False}),
        ("solarize", {"magnitude_std": 0.0}),
        ("filter", {"resamplings": (*FILTERS, FILTERS[1])}),
        ("magnitude at its bound", {"magnitude_max": 9.9}),
    ],
    ids=str,
)
def test_planted_wrong_operations_are_noticed(timm_recipe, feature, changed):
    assert compare(our_operations(RECIPE, **changed), timm_recipe, feature) < DIFFERS


def test_a_planted_wrong_sign_is_noticed(timm_recipe):
    rng = np.random.default_rng(0)
    ours = our_operations(RECIPE)
    biased = [
        [
            op._replace(argument=abs(op.argument))
            if op.name in GEOMETRIC and rng.random() < 0.2
            else op
            for op in operations
        ]
        for operations in ours
    ]
    assert compare(biased, timm_recipe, "sign") < DIFFERS


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5",
        "rand-m7-n3-p0.8-mstd1-inc1",
        "rand-m20-mmax15-mstd3-inc1",
        "rand-m6-mstd101-inc1",
        "rand-n1-p1.0",
        "rand-m9-mstd0.5-tweights",
        "rand-m9-mstd0.5-inc1-t3a",
        "rand-m9-n3-mstd0.5-t3aw",
    ],
)
def test_other_strings_mean_what_they_mean_to_timm(text):
    ours, theirs = our_operations(text), timm_operations(text)
    compared = 0
    for feature, (_, sample) in operation_features(ours).items():
        if len(set(sample)) > 1:
            assert compare(ours, theirs, feature) > AGREES, feature
            compared += 1
    assert compared >= 2


def test_flips_and_filters_are_distributed_as_timms():
    """Counted on finished images of a picture whose halves differ, and by timm's own modules."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = 255
    encoded = encode(Image.fromarray(picture), "PNG")
    rng = np.random.default_rng(0)
    for probability in (0.5, 0.1):
        ours = TrainTransform(8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=probability)
        flips = [bool(ours(encoded, rng)[0, 0, 0] > 128) for _ in range(DRAWS)]
        torch.manual_seed(0)
        flip = create_transform(224, is_training=True, hflip=probability).transforms[1]
        theirs = [flip(Image.fromarray(picture)).getpixel((0, 0))[0] > 128 for _ in range(DRAWS)]
        assert same_counts(flips, theirs) > AGREES
        wrong = [flipped or rng.random() < 0.05 for flipped in flips]
        assert same_counts(wrong, theirs) < DIFFERS
    # Magnified from 2 × 2, the two filters give two different images.
    tiny = encode(Image.fromarray(picture[:2, 3:5]), "PNG")
    ours = TrainTransform(16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    counts = np.unique([hash(ours(tiny, rng).tobytes()) for _ in range(2000)], return_counts=True)
    assert len(counts[1]) == 2
    assert stats.binomtest(int(counts[1][0]), 2000).pvalue > AGREES
