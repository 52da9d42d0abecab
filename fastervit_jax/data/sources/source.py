"""Where images come from: encoded bytes with a label, by number.

`open_source` reads two kinds of data set, neither of which needs TensorFlow at run time:

- `folder:PATH`, a folder a class, as ImageNet's `train` and `val` are usually unpacked;
- `tfds:NAME[/CONFIG[:VERSION]]@SPLIT`, a TFDS set prepared as array_record.
"""

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


def open_source(spec: str, *, data_dir: str | None = None) -> Source:
    """Opens the data set that `spec` names.

    Args:
      spec: `folder:PATH` or `tfds:NAME[/CONFIG[:VERSION]]@SPLIT`; a split may be a slice such as
        `train[:99%]`. Paths may be remote (`gs://…`). `digits:train` and `digits:validation` are
        scikit-learn's digits, written once as folders below `data_dir`.
      data_dir: for TFDS, the directory that holds the prepared sets; by default the environment's
        `TFDS_DATA_DIR`, else `~/tensorflow_datasets`. For the digits, by default the user's cache.

    Raises:
      ValueError: the specification, or what it points to, is not usable; the message says what to
        do about it.
    """
    kind, separator, rest = spec.partition(":")
    if separator and rest and kind == "folder":
        from fastervit_jax.data.sources.folder import FolderSource

        return FolderSource(rest)
    if kind == "digits" and rest in ("train", "validation"):
        from fastervit_jax.data.sources.digits import default_root, write_digits
        from fastervit_jax.data.sources.folder import FolderSource

        root = default_root(data_dir)
        write_digits(root)
        return FolderSource(f"{root}/{rest}")
    if separator and rest and kind == "tfds":
        from fastervit_jax.data.sources.tfds import TfdsSource

        return TfdsSource(rest, data_dir=data_dir)
    raise ValueError(
        f"Cannot read the data set {spec!r}: write folder:PATH, or "
        "tfds:NAME[/CONFIG[:VERSION]]@SPLIT such as tfds:imagenet2012@validation."
    )


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
