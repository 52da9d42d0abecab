"""Where images come from: `open_source` reads folders and TFDS sets.

Neither needs TensorFlow at run time:

- `folder:PATH`, a folder per class, as ImageNet's `train` and `val` are usually unpacked;
- `tfds:NAME[/CONFIG[:VERSION]]@SPLIT`, a TFDS set prepared as array_record.
"""

from fastervit_jax.data.sources.source import Example, Source, check_same_classes

__all__ = ["Example", "Source", "check_same_classes", "open_source"]


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
