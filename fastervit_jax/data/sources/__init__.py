"""Data sources: `open_source` opens folders of images, TFDS data sets and CSV tables.

No kind needs TensorFlow at run time:

- `folder:PATH` has one folder per class, the usual layout of ImageNet's `train` and `val`.
- `tfds:NAME[/CONFIG[:VERSION]]@SPLIT` is a TFDS data set that was prepared as array_record.
- `csv:PATH[,ROOT]` is a table of file names and labels.
"""

from fastervit_jax.data.sources.source import (
    Example,
    Source,
    check_same_classes,
    describe_classes,
    natural_key,
)

__all__ = [
    "Example",
    "Source",
    "check_same_classes",
    "describe_classes",
    "natural_key",
    "open_source",
]


def open_source(spec: str, *, data_dir: str | None = None) -> Source:
    """Opens the data set that `spec` names.

    Args:
        spec: `folder:PATH`, `tfds:NAME[/CONFIG[:VERSION]]@SPLIT` or `csv:PATH[,ROOT]`. A split may
            be a slice such as `train[:99%]`. A CSV table has the columns `file` and `label`; ROOT
            is the directory of relative file names. Paths may be remote (`gs://…`). `digits:train`
            and `digits:validation` are scikit-learn's digits, which are written once as folders in
            `data_dir`.
        data_dir: for TFDS, the directory with the prepared data sets. By default, the environment
            variable `TFDS_DATA_DIR`, then `~/tensorflow_datasets`. For the digits, the default is
            the user's cache directory.

    Raises:
        ValueError: the specification is invalid, or the data set cannot be read. The message says
            what to do.
    """
    kind, separator, rest = spec.partition(":")
    if separator and rest and kind == "folder":
        from fastervit_jax.data.sources.folder import FolderSource

        return FolderSource(rest)
    if separator and rest and kind == "csv":
        from fastervit_jax.data.sources.csv_table import CsvSource

        table, _, images = rest.partition(",")
        return CsvSource(table, images or None)
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
        f"Invalid data set {spec!r}: expected folder:PATH, csv:PATH or "
        "tfds:NAME[/CONFIG[:VERSION]]@SPLIT, for example tfds:imagenet2012@validation."
    )
