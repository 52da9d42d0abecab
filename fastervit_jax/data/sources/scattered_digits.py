"""Scattered digits: scans of handwritten digits on photographs, as a COCO data set with masks.

    python -m fastervit_jax.data.sources.scattered_digits --output=DIR

pastes scikit-learn's digits at random sizes and places on crops of scikit-image's photographs,
several per image, some of them overlapping, but none hidden by more than a fifth. It writes 600
training and 150 validation images, which share neither scans nor photographs:

- `DIR/train/NNNN.png` and `DIR/validation/NNNN.png`;
- `DIR/annotations/instances_train.json` and `…_validation.json`, in COCO's format;
- `DIR/masks/train/NNNN.png` and so on: 0 for the background, 1 + digit for a digit.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from fastervit_jax.data.sources.digits import _load_digits, default_root, held_out

IMAGES = {"train": 600, "validation": 150}
PHOTOGRAPHS = {
    "train": ("astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "gravel.png"),
    "validation": ("coffee.png", "brick.png", "camera.png"),
}
SIDES = (96, 112)
"""Shortest and longest side of an image, in pixels."""
DIGIT_SIDES = (28, 52)
"""Smallest and largest side of a scan on an image, in pixels."""
TRIES = (4, 14)
"""Least and most scans of an image. Those that would hide others are left out."""
LEAST_VISIBLE = 0.8
"""Share of a digit's pixels that later scans, with their dark parts, leave visible."""
_VERSION = 2
_INK = 0.35  # a pixel of a scan with more ink belongs to the digit
_DARKENING = 0.4  # how bright the photograph is behind a scan


def scattered_root(data_dir: str | None = None) -> Path:
    """Returns the directory of the data set, in `data_dir` or in the user's cache directory."""
    return default_root(data_dir).parent / f"scattered_digits_{_VERSION}"


def write_scattered_digits(root: str | os.PathLike) -> None:
    """Writes the data set: all of it or nothing.

    Does nothing if `root` contains it.

    Raises:
        ImportError: scikit-learn or scikit-image is not installed.
        ValueError: `root` contains something else.
    """
    root = Path(root)
    if all((root / "annotations" / f"instances_{split}.json").is_file() for split in IMAGES):
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(
            f"Invalid directory {root}: it exists and does not contain the scattered digits. Name "
            "an empty or new directory."
        )
    scans, labels = _load_digits()
    validation = held_out(labels)
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        temporary.chmod(0o755)
        for seed, split in enumerate(IMAGES):
            chosen = validation if split == "validation" else ~validation
            _write_split(temporary, split, scans[chosen], labels[chosen], seed)
        temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(root: Path, split: str, scans: np.ndarray, labels: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photographs = _photographs(PHOTOGRAPHS[split])
    for folder in (root / split, root / "masks" / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(IMAGES[split]):
        pixels, owners, digits = _compose(photographs, scans, labels, rng)
        height, width = owners.shape
        name = f"{number:04d}.png"
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        mask = np.zeros((height, width), np.uint8)
        for index, digit in enumerate(digits):
            visible = owners == index
            mask[visible] = digit + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(digit),
                    "bbox": _bounding_box(visible),
                    "area": int(visible.sum()),
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(root / split / name)
        Image.fromarray(mask).save(root / "masks" / split / name)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _photographs(names: tuple[str, ...]) -> list[Image.Image]:
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            "The photographs are part of scikit-image, which is not installed. Run pip install "
            "'fastervit-jax[quickstart]' or pip install scikit-image."
        ) from error
    folder = Path(skimage.data.__file__).parent
    return [Image.open(folder / name).convert("RGB") for name in names]


def _compose(photographs, scans, labels, rng) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One image, which digit each pixel shows (−1: none), and the digits."""
    height, width = (int(side) for side in rng.integers(*SIDES, 2, endpoint=True))
    pixels = _crop(photographs[rng.integers(len(photographs))], height, width, rng)
    owners = np.full((height, width), -1)
    clear = owners  # the same, without what later scans cover
    digits: list[int] = []
    drawn: list[int] = []
    for _ in range(int(rng.integers(*TRIES, endpoint=True))):
        index = int(rng.integers(len(scans)))
        side = int(rng.integers(*DIGIT_SIDES, endpoint=True))
        scan = Image.fromarray(scans[index]).resize((side, side), Image.Resampling.BICUBIC)
        alpha = np.asarray(scan, np.float64) / 255
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        place = (slice(top, top + side), slice(left, left + side))
        ink = alpha > _INK
        changed = owners.copy()
        changed[place][ink] = len(digits)
        still_clear = clear.copy()
        still_clear[place] = np.where(ink, len(digits), -1)
        visible = [(still_clear == each).sum() for each in range(len(digits))]
        if any(v < LEAST_VISIBLE * n for v, n in zip(visible, drawn, strict=True)):
            continue  # it would hide another digit
        # Light ink on a darkened patch, as on the scan.
        ink_color = rng.integers(180, 256, 3)
        share = np.clip(alpha * 1.2, 0, 1)[..., None]
        patch = (1 - share) * _DARKENING * pixels[place] + share * ink_color
        pixels[place] = np.rint(patch).astype(np.uint8)
        owners, clear = changed, still_clear
        digits.append(int(labels[index]))
        drawn.append(int(ink.sum()))
    return pixels, owners, digits


def _crop(photograph: Image.Image, height: int, width: int, rng) -> np.ndarray:
    """A random part of a photograph at a random scale, uint8 [height, width, 3]."""
    scale = rng.uniform(1, min(3, photograph.width / width, photograph.height / height))
    part = int(width * scale), int(height * scale)
    left = int(rng.integers(photograph.width - part[0] + 1))
    top = int(rng.integers(photograph.height - part[1] + 1))
    box = (left, top, left + part[0], top + part[1])
    return np.array(photograph.crop(box).resize((width, height), Image.Resampling.BICUBIC))


def _bounding_box(visible: np.ndarray) -> list[int]:
    """[x, y, width, height] of the true pixels."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def main(argv: list[str]) -> None:
    """Runs the command line program."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown argument {argv[1]!r}: use --output=DIR.")
    output = flags.FLAGS.output
    write_scattered_digits(output)
    print(f"coco:{output}@train and coco:{output}@validation")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Directory to write the data set to.", required=True)
    app.run(main)
