"""What a data set is to this package: encoded images with labels, by number."""

from typing import NamedTuple, Protocol


class Example(NamedTuple):
    """One image as stored.

    Attributes:
      encoded: the file's bytes (JPEG, PNG, WebP, ...).
      label: index into the source's class names.
      key: the file or record, for people: what a message names.
    """

    encoded: bytes
    label: int
    key: str


class Source(Protocol):
    """A data set with random access. Sources pickle, so that worker processes can read them."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        ...

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def check_same_classes(train: Source, validation: Source) -> None:
    """Makes sure that a label means the same class in training and validation.

    Raises:
      ValueError: the class names differ; the message names some that do.
    """
    if train.class_names == validation.class_names:
        return
    only_train = sorted(set(train.class_names) - set(validation.class_names))
    only_validation = sorted(set(validation.class_names) - set(train.class_names))
    if not only_train and not only_validation:
        difference = "the same names come in another order"
    else:
        difference = "; ".join(
            f"only {where} has {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for where, names in (("training", only_train), ("validation", only_validation))
            if names
        )
    raise ValueError(
        f"Training has {train.num_classes} classes and validation {validation.num_classes}, and "
        f"they differ ({difference}): give both the same classes."
    )
