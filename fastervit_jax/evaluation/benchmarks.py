"""The benchmarks of FasterViT and the published accuracy."""

import dataclasses
from typing import NamedTuple

from fastervit_jax.data.preprocessing import ROBUSTNESS_CROP, CropMode
from fastervit_jax.evaluation.imagenet_classes import IMAGENET_A, IMAGENET_R


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A named evaluation.

    Attributes:
        title: name for the user.
        tfds: default TFDS data set.
        over: the classes that can be predicted; None means all classes of the network.
        crop: crop mode and fraction; None means those of the model.
        several_answers: whether an image can have several correct classes, or none.
        numbered: whether folders may be named by class number instead of class identifier.
    """

    title: str
    tfds: str
    over: tuple[str, ...] | None = None
    crop: tuple[CropMode, float] | None = None
    several_answers: bool = False
    numbered: bool = False


BENCHMARKS = {
    "imagenet": Benchmark("ImageNet-1K", "tfds:imagenet2012@validation"),
    "imagenet-a": Benchmark(
        "ImageNet-A", "tfds:imagenet_a@test", over=IMAGENET_A, crop=ROBUSTNESS_CROP
    ),
    "imagenet-r": Benchmark(
        "ImageNet-R", "tfds:imagenet_r@test", over=IMAGENET_R, crop=ROBUSTNESS_CROP
    ),
    # Its archive has the folders 0 … 999, the indices of the sorted identifiers (as in TFDS).
    "imagenet-v2": Benchmark(
        "ImageNet-V2",
        "tfds:imagenet_v2/matched-frequency@test",
        crop=ROBUSTNESS_CROP,
        numbered=True,
    ),
    "imagenet-real": Benchmark(
        "ImageNet-ReaL", "tfds:imagenet2012_real@validation", several_answers=True
    ),
    "imagenet-sketch": Benchmark(
        "ImageNet-Sketch", "tfds:imagenet_sketch@test", crop=ROBUSTNESS_CROP
    ),
}
"""Benchmarks by the name that `--dataset` accepts. The first four are in the paper. ReaL is from
Beyer et al., "Are we done with ImageNet?" (2020). Sketch is from Wang et al., "Learning Robust
Global Representations by Penalizing Local Predictive Power" (2019)."""


class Published(NamedTuple):
    """Published accuracy in percent."""

    top1: float
    top5: float


_ROWS: dict[str, tuple[tuple[float, float], ...]] = {
    "faster_vit_0_224": ((82.1, 95.9), (23.9, 57.6), (45.9, 60.4), (70.9, 90.0)),
    "faster_vit_1_224": ((83.2, 96.5), (31.2, 63.3), (47.5, 61.9), (72.6, 91.0)),
    "faster_vit_2_224": ((84.2, 96.8), (38.2, 68.9), (49.6, 63.4), (73.7, 91.6)),
    "faster_vit_3_224": ((84.9, 97.2), (44.2, 73.0), (51.9, 65.6), (75.0, 92.2)),
    "faster_vit_4_224": ((85.4, 97.3), (49.0, 75.4), (56.0, 69.6), (75.7, 92.7)),
    "faster_vit_5_224": ((85.6, 97.4), (52.7, 77.6), (56.9, 70.0), (76.0, 93.0)),
    "faster_vit_6_224": ((85.8, 97.4), (53.7, 78.4), (57.1, 70.1), (76.1, 93.0)),
    "faster_vit_4_21k_224": ((86.6, 97.8),),
    "faster_vit_4_21k_384": ((87.6, 98.3),),
    "faster_vit_4_21k_512": ((87.8, 98.4),),
    "faster_vit_4_21k_768": ((87.9, 98.5),),
}

PUBLISHED_ON = ("imagenet", "imagenet-a", "imagenet-r", "imagenet-v2")
"""Benchmarks of the published tables."""

PUBLISHED: dict[str, dict[str, Published]] = {
    model: {name: Published(*cell) for name, cell in zip(PUBLISHED_ON, row, strict=False)}
    for model, row in _ROWS.items()
}
"""Accuracy by model and benchmark, from the README of the official repository."""
