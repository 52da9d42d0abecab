"""RandAugment (Cubuk et al., 2019) as timm 0.9.16 draws it.

Settings are strings as in timm. The official recipe uses `rand-m9-mstd0.5-inc1`.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastervit_jax.augmentation.operations import GEOMETRIC, Operation, apply_operation

FIFTEEN = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
# timm's named sets (`-t…`), with weights if timm has weights. All sets use increasing operations.
_SETS: dict[str, dict[str, float] | tuple[str, ...]] = {
    "3a": ("Solarize", "Desaturate", "GaussianBlur"),
    "3aw": {
        "Solarize": 6,
        "Desaturate": 6,
        "GaussianBlur": 6,
        "Rotate": 3,
        "ShearX": 2,
        "ShearY": 2,
        "Posterize": 1,
        "AutoContrast": 1,
        "Color": 1,
        "Sharpness": 1,
        "Contrast": 1,
        "Brightness": 1,
        "Equalize": 1,
        "Invert": 1,
    },
    "weights": {
        "Rotate": 3,
        "ShearX": 2,
        "ShearY": 2,
        "TranslateX": 1,
        "TranslateY": 1,
        "Color": 0.25,
        "Sharpness": 0.25,
        "AutoContrast": 0.25,
        "Solarize": 0.05,
        "SolarizeAdd": 0.05,
        "Contrast": 0.05,
        "Brightness": 0.05,
        "Equalize": 0.05,
        "Posterize": 0.05,
        "Invert": 0.05,
    },
}
_ENHANCING = {"Color", "Contrast", "Brightness", "Sharpness"}
_FULL_MAGNITUDE = 10.0


def operation_argument(
    name: str, magnitude: float, *, increasing: bool, negative: bool
) -> float | None:
    """Returns the argument of an operation at a magnitude, or None if it has no argument.

    Follows the `_level_to_arg` functions of `timm.data.auto_augment`.

    Args:
        name: a RandAugment operation.
        magnitude: strength, from 0 (mostly no effect) to 10 or to `mmax`.
        increasing: True makes posterize, solarize and the enhancing operations stronger with the
            magnitude (timm's `inc1`). False is the original RandAugment, where they are not.
        negative: whether to negate the argument, if the operation has a sign.
    """
    level = magnitude / _FULL_MAGNITUDE
    sign = -1.0 if negative else 1.0
    if name in _ENHANCING:
        return max(0.1, 1.0 + sign * (level * 0.9)) if increasing else level * 1.8 + 0.1
    if name == "Rotate":
        return sign * (level * 30.0)
    if name in ("ShearX", "ShearY"):
        return sign * (level * 0.3)
    if name in ("TranslateX", "TranslateY"):
        return sign * (level * 0.45)
    if name == "Posterize":
        return 4 - int(level * 4) if increasing else int(level * 4)
    if name == "Solarize":
        threshold = min(256, int(level * 256))
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return min(128, int(level * 110))
    if name == "Desaturate":
        return min(1.0, 0.5 + 0.5 * level)
    if name == "GaussianBlur":
        return min(2.0, 0.1 + (2.0 - 0.1) * level)
    return None


@dataclass(frozen=True)
class RandAugment:
    """Draws and applies random operations. `parse_rand_augment` creates it.

    Attributes:
        operations: names of the operations to draw from.
        weights: probabilities of the operations. An operation is then drawn at most once per image.
            None means uniform draws with replacement.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the normal distribution of the strength. Infinity means
            a uniform distribution from 0 to `magnitude`.
        magnitude_max: upper bound of the drawn strength.
        num_layers: number of operations drawn per image.
        probability: probability that a drawn operation is applied.
        increasing: see `operation_argument`.
        resamplings: filters from which a geometric operation draws one.
    """

    operations: tuple[str, ...] = FIFTEEN
    weights: tuple[float, ...] | None = None
    magnitude: int = 10
    magnitude_std: float = 0.0
    magnitude_max: float = _FULL_MAGNITUDE
    num_layers: int = 2
    probability: float = 0.5
    increasing: bool = False
    resamplings: tuple[Image.Resampling, ...] = (
        Image.Resampling.BILINEAR,
        Image.Resampling.BICUBIC,
    )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Distorts an RGB image. The size stays the same."""
        for operation in self.draw(rng):
            image = apply_operation(image, operation)
        return image

    def draw(self, rng: np.random.Generator) -> list[Operation]:
        """Draws the operations to apply to one image, in order."""
        chosen = rng.choice(
            len(self.operations), self.num_layers, replace=self.weights is None, p=self.weights
        )
        return [
            self._draw_argument(self.operations[index], rng)
            for index in chosen
            if rng.random() < self.probability
        ]

    def _draw_argument(self, name: str, rng: np.random.Generator) -> Operation:
        magnitude = float(self.magnitude)
        if math.isinf(self.magnitude_std):
            magnitude = rng.uniform(0.0, magnitude)
        elif self.magnitude_std:
            magnitude = rng.normal(magnitude, self.magnitude_std)
        magnitude = min(max(magnitude, 0.0), self.magnitude_max)
        argument = operation_argument(
            name, magnitude, increasing=self.increasing, negative=rng.random() < 0.5
        )
        if name not in GEOMETRIC:
            return Operation(name, argument)
        return Operation(name, argument, self.resamplings[rng.integers(len(self.resamplings))])


def parse_rand_augment(
    text: str, resamplings: tuple[Image.Resampling, ...] = RandAugment.resamplings
) -> RandAugment:
    """Parses a RandAugment string as in timm, such as "rand-m9-mstd0.5-inc1".

    The sections after `rand` may come in any order:

    - `m`: magnitude (default 10)
    - `n`: number of operations per image (default 2)
    - `p`: probability of each operation (default 0.5)
    - `mstd`: standard deviation of the magnitude (default 0; above 100 means uniform draws)
    - `mmax`: upper bound of the magnitude (default 10)
    - `inc1`: use the increasing operations
    - `t`: a named set (`t3a`, `t3aw`, `tweights`)

    Args:
        text: the string.
        resamplings: filters from which a geometric operation draws one.

    Raises:
        ValueError: a section is unknown or has an invalid value.
    """
    settings: dict[str, float] = {}
    named_set = None
    for section in text.removeprefix("rand-").split("-"):
        match = re.fullmatch(r"(m|n|p|mstd|mmax|inc)(\d+(?:\.\d+)?)", section)
        if section.startswith("t") and section[1:] in _SETS:
            named_set = section[1:]
        elif match:
            settings[match[1]] = _section_value(text, match[1], match[2])
        else:
            raise ValueError(
                f"Invalid RandAugment string {text!r}: expected sections m, n, p, mstd, mmax or "
                f"inc1 with a number, or t with one of {', '.join(_SETS)}, got {section!r}. An "
                'example is "rand-m9-mstd0.5-inc1".'
            )
    operations = _SETS[named_set] if named_set else FIFTEEN
    weights = None
    if isinstance(operations, dict):
        total = sum(operations.values())
        weights = tuple(weight / total for weight in operations.values())
    num_layers = int(settings.get("n", 2))
    if weights and num_layers > len(weights):
        raise ValueError(
            f"Invalid RandAugment string {text!r}: n must be at most {len(weights)}, because the "
            f"set {named_set} is drawn from without replacement."
        )
    deviation = settings.get("mstd", 0.0)
    return RandAugment(
        operations=tuple(operations),
        weights=weights,
        magnitude=int(settings.get("m", 10)),
        magnitude_std=math.inf if deviation > 100 else deviation,
        magnitude_max=settings.get("mmax", _FULL_MAGNITUDE),
        num_layers=num_layers,
        probability=settings.get("p", 0.5),
        increasing="inc" in settings or named_set is not None,
        resamplings=resamplings,
    )


def _section_value(text: str, key: str, value: str) -> float:
    number = float(value)
    # timm enables it for `inc` followed by any digits.
    if key == "inc" and number != 1:
        raise ValueError(
            f"Invalid RandAugment string {text!r}: write inc1, or omit inc to disable it."
        )
    if key in ("m", "n", "mmax") and number != int(number):
        raise ValueError(
            f"Invalid RandAugment string {text!r}: {key} must be an integer, got {value}."
        )
    if key == "mmax" and not number:
        raise ValueError(f"Invalid RandAugment string {text!r}: mmax must be positive.")
    if key == "p" and number > 1:
        raise ValueError(
            f"Invalid RandAugment string {text!r}: p must be a probability, got {value}."
        )
    return number
