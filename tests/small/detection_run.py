"""The smallest run of detection, as commands: squares and bars on noise, a tiny DINO."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.quick_compilation import quickest_compilation
from tests.small import killed_run
from tests.small.run import as_flags

FLAGS = {
    "model.num_classes": 2,
    "model.depths": (1, 1, 1, 1),
    "model.num_heads": (1, 1, 2, 2),
    "model.dim": 8,
    "model.in_dim": 8,
    "model.drop_path_rate": 0.1,
    "model.hidden": 32,
    "model.heads": 2,
    "model.feedforward": 32,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.queries": 20,
    "denoising.queries": 8,
    "data.buckets": ((64, 64),),
    "data.max_boxes": 4,
    "resize.short_sides": (48, 56, 64),
    "resize.long_side": 64,
    "resize.crop_short_sides": (56, 64),
    "resize.crop_sides": (40, 60),
    "flip": 0.5,
    "batch_size": 8,
    "group_size": 4,
    "epochs": 4,
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_epochs": 0.5,
    "optimizer.backbone_factor": 0.5,
    "ema_decay": 0.9,
    "evaluation.batch_size": 8,
    "evaluation.short_side": 64,
    "evaluation.every_epochs": 4,
    "checkpoint.every_epochs": 4,
    "log_every_steps": 1,
}
STEPS = 20
_IMAGES = {"train": 40, "validation": 8}


def write_images(root: Path) -> None:
    """Writes a data set in COCO's usual layout: one to three bright shapes on each image."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in _IMAGES.items():
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            height, width = (int(side) for side in rng.integers(48, 65, 2))
            pixels = rng.integers(0, 100, (height, width, 3), np.uint8)
            for _ in range(int(rng.integers(1, 4))):
                label = int(rng.integers(2))
                h, w = (16, 16) if label == 0 else (8, 28)
                top, left = int(rng.integers(height - h)), int(rng.integers(width - w))
                pixels[top : top + h, left : left + w] = 250 - 80 * label
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 3 + 4 * label,
                        "bbox": [left, top, w, h],
                    }
                )
            name = f"{number:02d}.png"
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
        categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "bar"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def environment(cache: Path) -> dict[str, str]:
    """As `killed_run.environment`, with programs that are compiled sooner still."""
    variables = killed_run.environment(cache)
    for option, value in quickest_compilation().items():
        variables["XLA_FLAGS"] += f" --{option}={str(value).lower()}"
    return variables


def command(workdir: Path, data: Path, **changes) -> list[str]:
    """train.py's command line; changes are config keys with `__` for dots."""
    flags = {
        **FLAGS,
        "data.train": f"coco:{data}@train",
        "data.validation": f"coco:{data}@validation",
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    recipe = "--config=configs/detect_digits.py"
    return [sys.executable, "train.py", recipe, f"--workdir={workdir}", *as_flags(flags)]
