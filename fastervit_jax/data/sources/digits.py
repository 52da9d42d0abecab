"""scikit-learn's handwritten digits as a folder data set: the quickstart's 1,797 images.

    python -m fastervit_jax.data.sources.digits --output=DIR

writes `DIR/train/<class>/NNNN.png` (1,438 images) and `DIR/validation/<class>/NNNN.png` (359), 8×8
greyscale; NNNN is the image's number in scikit-learn's order.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

_SPLIT_SEED = 0
_TRAIN, _VALIDATION = "train", "validation"


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which examples are validation, bool `[N]`: a fixed random fifth of every class."""
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(len(members) / 5)]] = True
    return chosen


def default_root(data_dir: str | None = None) -> Path:
    """Where `digits:…` data sets live: below `data_dir`, or in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(data_dir or Path(cache) / "fastervit_jax") / "digits"


def write_digits(root: str | os.PathLike) -> None:
    """Writes the digits below `root` as `train/<class>/NNNN.png` and `validation/<class>/NNNN.png`.

    A root that is complete already is left alone. The set is written beside `root` and moved there
    in one piece, so that an interrupted call leaves nothing that looks complete.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: `root` holds something else.
    """
    root = Path(root)
    if (root / _TRAIN).is_dir() and (root / _VALIDATION).is_dir():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"{root} exists and does not hold the digits: name an empty or new directory."
        )
    images, labels = _load_digits()
    validation = held_out(labels)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        temporary.chmod(0o755)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            split = _VALIDATION if validation[number] else _TRAIN
            folder = temporary / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:04d}.png")
        # Renaming onto an existing empty directory replaces it; both are on one file system.
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[1797, 8, 8]` (the set's 0 … 16 scaled to 0 … 255) and labels `[1797]`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn: pip install 'fastervit-jax[quickstart]' "
            "(or pip install scikit-learn)."
        ) from error
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def main(argv: list[str]) -> None:
    """The command line."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument {argv[1]!r}; use --output=DIR.")
    write_digits(flags.FLAGS.output)
    print(f"folder:{flags.FLAGS.output}/{_TRAIN} and folder:{flags.FLAGS.output}/{_VALIDATION}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Directory to write the digits to.", required=True)
    app.run(main)
