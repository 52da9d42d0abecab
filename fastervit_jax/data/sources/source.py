"""The data source protocol: encoded images with labels, accessed by index."""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Example(NamedTuple):
    """One image as stored.

    Attributes:
        encoded: content of the image file (JPEG, PNG, WebP, ...).
        label: index into the class names of the source.
        key: name of the file or record, for messages.
    """

    encoded: bytes
    label: int
    key: str


class Source(Protocol):
    """A data set with random access. It must be picklable, so that worker processes can read it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def check_same_classes(train: Source, validation: Source) -> None:
    """Checks that a label means the same class in training and validation.

    Raises:
        ValueError: the class names differ. The message names some of them.
    """
    if train.class_names == validation.class_names:
        return
    only_train = sorted(set(train.class_names) - set(validation.class_names))
    only_validation = sorted(set(validation.class_names) - set(train.class_names))
    if not only_train and not only_validation:
        difference = "the names are the same, but their order differs"
    else:
        difference = "; ".join(
            f"only {where} has {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for where, names in (("training", only_train), ("validation", only_validation))
            if names
        )
    raise ValueError(
        f"Training has {train.num_classes} classes and validation has {validation.num_classes} "
        f"classes, and the classes differ ({difference}). Use the same classes in both."
    )


def natural_key(name: str) -> tuple:
    """Sorting key of timm's folder reader: numbers by value, letters by their lower case.

    `1, 2, 10` instead of `1, 10, 2`; `apple, Banana` instead of `Banana, apple`. Names that timm
    does not distinguish are in plain order.
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdigit() else part for part in parts], name


def describe_classes(names: Sequence[str]) -> str:
    """One line with the number of classes, and the first and last three with their index."""
    numbered = [f"{index} = {name}" for index, name in enumerate(names)]
    if len(numbered) > 6:
        numbered = [*numbered[:3], "…", *numbered[-3:]]
    return f"{len(names)} classes: {', '.join(numbered)}"
