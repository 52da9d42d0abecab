"""scikit-learn's handwritten digits as a folder data set: the 1,797 images of the quickstart.

    python -m fastervit_jax.data.sources.digits --output=DIR

writes 1,438 training images, `DIR/train/<class>/NNNN.png`, and 359 validation images,
`DIR/validation/<class>/NNNN.png`. The images are 8×8 and gray. NNNN is the number of the image in
scikit-learn's order.
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
    """Returns a mask of the validation examples, bool `[N]`: a fixed fifth of every class."""
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(len(members) / 5)]] = True
    return chosen


def default_root(data_dir: str | None = None) -> Path:
    """Returns the directory of the digits, in `data_dir` or in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(data_dir or Path(cache) / "fastervit_jax") / "digits"


def write_digits(root: str | os.PathLike) -> None:
    """Writes the digits to `root/train/<class>/NNNN.png` and `root/validation/<class>/NNNN.png`.

    Does nothing if `root` already contains them. The images are written to a temporary directory,
    which is then renamed. An interrupted call therefore never leaves an incomplete data set.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `root` contains something else.
    """
    root = Path(root)
    if (root / _TRAIN).is_dir() and (root / _VALIDATION).is_dir():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"Invalid directory {root}: it exists and does not contain the digits. Name an empty "
            "or new directory."
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
    """Returns images, uint8 `[1797, 8, 8]` from 0 to 255, and labels `[1797]`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The digits are part of scikit-learn, which is not installed. Run pip install "
            "'fastervit-jax[quickstart]' or pip install scikit-learn."
        ) from error
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def main(argv: list[str]) -> None:
    """Runs the command line program."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument {argv[1]!r}: use --output=DIR.")
    write_digits(flags.FLAGS.output)
    print(f"folder:{flags.FLAGS.output}/{_TRAIN} and folder:{flags.FLAGS.output}/{_VALIDATION}")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Directory to write the digits to.", required=True)
    app.run(main)
