"""Images per second of the data layer beside what a user would pick instead, in one run.

    python benchmarks/loader.py --output=benchmarks/results/loader.json

The photographs are 500 × 375 JPEG files of about 100 kB, made from those bundled with scikit-image
and scikit-learn. All candidates take turns on the same files, in rounds; medians are reported.

- One core: images per second of processor time, of our transforms, of timm's (as the official
  script builds them) and, for the crop alone, of tf.data in a process of its own
  (`--tensorflow_python` names a Python that has TensorFlow).
- Loader: images per second of the clock, and of processor time over all processes, with as many
  workers as cores: ours, and a torch DataLoader over timm's transform with timm's collate function.
- Memory of a worker, and its growth over `--soak` images.

Processor time does not suffer from what else the machine is doing; the clock does.
"""

import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import (
    EvalTransform,
    eval_batches,
    open_source,
    train_batches,
)
from fastervit_jax.data.sources import Source

_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write; the table goes beside it.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that every candidate takes its turn.")
_IMAGES = flags.DEFINE_integer("images", 200, "Images of a one-core turn.")
_BATCHES = flags.DEFINE_integer("batches", 16, "Batches of 64 of a loader's turn.")
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count(), "Worker processes of the loaders.")
_SOAK = flags.DEFINE_integer("soak", 50_000, "Images over which memory is watched; 0: not.")
_TENSORFLOW = flags.DEFINE_string("tensorflow_python", None, "A Python that has TensorFlow.")

RECIPE = "rand-m9-mstd0.5-inc1"
BATCH_SIZE = 64
NUM_PHOTOGRAPHS = 256
Candidate = Callable[[], dict[str, float]]


def write_photographs(root: Path) -> None:
    """Writes 256 JPEG files of 500 × 375 pixels in 4 classes, about 100 kB each."""
    import skimage.data
    import sklearn.datasets

    folders = Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"
    names = (
        ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
        ("china.jpg", "flower.jpg"),
    )
    photographs = [
        Image.open(folder / name).convert("RGB")
        for folder, group in zip(folders, names, strict=True)
        for name in group
    ]
    rng = np.random.default_rng(0)
    for number in range(NUM_PHOTOGRAPHS):
        photograph = photographs[number % len(photographs)]
        width = int(rng.uniform(0.6, 0.74) * photograph.width)
        height = width * 3 // 4
        left = rng.integers(0, photograph.width - width, endpoint=True)
        top = rng.integers(0, photograph.height - height, endpoint=True)
        piece = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
        # Grain, as cameras have it, makes the files as large as ImageNet's.
        noise = rng.normal(0, 10, (375, 500, 3))
        noisy = np.clip(np.asarray(piece) + noise, 0, 255).astype(np.uint8)
        folder = root / f"class_{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / f"{number:04d}.jpg", quality=94)


# --- one core ---


def one_core(transform: Callable[[bytes], object], source: Source) -> Candidate:
    """Transforms files read beforehand; images per second of this process's time."""
    files = [source[number % len(source)].encoded for number in range(_IMAGES.value)]

    def turn() -> dict[str, float]:
        start = time.process_time()
        for encoded in files:
            transform(encoded)
        return {"per_core": len(files) / (time.process_time() - start)}

    return turn


def timm_transforms() -> dict[str, Callable[[Image.Image], object]]:
    """timm's transforms with the official script's arguments, up to the uint8 array."""
    from timm.data import auto_augment, create_transform

    # timm asks Pillow to keep 0 bits in one of some 600 images, which today's Pillow refuses.
    posterize = auto_augment.posterize
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **keywords: posterize(
        image, max(1, bits), **keywords
    )
    common = {"input_size": (3, 224, 224), "use_prefetcher": True}
    training = common | {"is_training": True, "color_jitter": None, "interpolation": "random"}
    return {
        "evaluation": create_transform(**common, interpolation="bicubic", crop_pct=0.875),
        "crop": create_transform(**training, hflip=0.0),
        "full": create_transform(**training, auto_augment=RECIPE, mean=(0.485, 0.456, 0.406)),
    }


def train_transforms() -> dict[str, TrainTransform]:
    """Ours: what stays on the host with config.distort_on_device, and the recipe's whole."""
    return {
        "crop": TrainTransform(224, flip=0.0),
        "full": TrainTransform(224, rand_augment=RECIPE),
    }


def our_transforms() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Ours, on one core."""
    rng = np.random.default_rng(0)

    def drawing(transform: TrainTransform) -> Callable[[bytes], np.ndarray]:
        return lambda encoded: transform(encoded, rng)

    return {
        "evaluation": EvalTransform(224, 0.875, "center"),
        **{kind: drawing(transform) for kind, transform in train_transforms().items()},
    }


def on_file(transform: Callable[[Image.Image], object]) -> Callable[[bytes], object]:
    """timm's dataset's decoding before a timm transform."""
    return lambda encoded: transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


def tensorflow_crop(root: Path) -> Candidate:
    """decode_and_crop_jpeg and a bicubic resize under tf.data, on one thread of its own."""
    script = Path(__file__).with_name("loader_tensorflow.py")

    def turn() -> dict[str, float]:
        command = [_TENSORFLOW.value, script, root, str(_IMAGES.value)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return {"per_core": float(done.stdout.split()[-1])}

    return turn


# --- loaders ---


def _processor_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _workers() -> list[int]:
    """Child processes that decode: not multiprocessing's resource tracker."""
    command_lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in _children()}
    return [pid for pid, line in command_lines.items() if "resource_tracker" not in line]


def timed_loader(make: Callable[[], object], workers: int) -> Candidate:
    """Iterates a fresh loader; counts from when every worker has delivered until its last batch."""

    def turn() -> dict[str, float]:
        batches = iter(make())
        for _ in range(workers):
            next(batches)
        processes = [os.getpid(), *_workers()]
        start, used = time.perf_counter(), _processor_seconds(processes)
        count = 0
        # The workers' time is read while they live: before the last batches are handed over.
        for _ in range(_BATCHES.value):
            count += len(next(batches)["image"])
        seconds = time.perf_counter() - start
        rates = {
            "per_second": count / seconds,
            "per_core": count / (_processor_seconds(processes) - used),
            "worker_mb": statistics.mean(map(_own_mb, processes[1:])),
        }
        if hasattr(batches, "close"):
            batches.close()
        return rates

    return turn


def _own_mb(pid: int) -> float:
    """A process's own memory, without libraries and what is shared."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(rollup[rollup.index("Anonymous:") + 1]) / 1024


def our_loader(source: Source, kind: str, workers: int) -> Callable[[], object]:
    """Ours; some batches more than are counted, so that no worker is idle while they are."""
    options = {"batch_size": BATCH_SIZE, "num_workers": workers}
    steps = _BATCHES.value + 4 * workers
    if kind == "evaluation":
        repeated = Repeated(source, steps * BATCH_SIZE)
        return lambda: eval_batches(repeated, EvalTransform(224, 0.875, "center"), **options)
    # As many as ImageNet has: what finding the next one costs depends on that.
    repeated = Repeated(source, 1_281_167)
    transform = train_transforms()[kind]
    return lambda: train_batches(repeated, transform, seed=0, num_steps=steps, **options)


def torch_loader(root: Path, kind: str) -> Callable[[], object]:
    """A torch DataLoader over a folder with timm's transform and timm's collate function."""
    import torch
    from timm.data import ImageDataset
    from timm.data.loader import fast_collate

    torch.set_num_threads(1)
    dataset = ImageDataset(str(root), transform=timm_transforms()[kind])
    length = (_BATCHES.value + 4 * _WORKERS.value) * BATCH_SIZE

    def make():
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=BATCH_SIZE,
            sampler=[number % len(dataset) for number in range(length)],
            num_workers=_WORKERS.value,
            collate_fn=fast_collate,
        )
        return ({"image": images} for images, _ in loader)

    return make


class Repeated:
    """A source whose images come again and again, to make a long evaluation of few files."""

    def __init__(self, source: Source, length: int):
        self._source, self._length = source, length
        self.class_names, self.num_classes = source.class_names, source.num_classes

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return self._source[index % len(self._source)]


def soak(source: Source, images: int) -> list[dict[str, float]]:
    """Memory of the workers, and of this process, along a long run without RandAugment."""
    steps = images // BATCH_SIZE
    loader = train_batches(
        source,
        TrainTransform(224),
        batch_size=BATCH_SIZE,
        seed=0,
        num_steps=steps,
        num_workers=_WORKERS.value,
    )
    watched = []
    for step, _ in enumerate(loader, start=1):
        if step % (steps // 10) == 0 and (workers := _workers()):
            watched.append(
                {
                    "images": step * BATCH_SIZE,
                    "worker_mb": round(statistics.mean(map(_own_mb, workers)), 1),
                    "parent_mb": round(_own_mb(os.getpid()), 1),
                    "shared_mb": round(_shared_mb(), 1),
                }
            )
    return watched


def _shared_mb() -> float:
    return sum(path.stat().st_size for path in Path("/dev/shm").glob("psm_*")) / 2**20


# --- the run ---


def take_turns(candidates: dict[str, Candidate]) -> dict[str, dict[str, float]]:
    """Runs the candidates in rounds, after one round to warm up; medians of what they report."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    for number in range(_ROUNDS.value + 1):
        for name, turn in candidates.items():
            result = turn()
            if number:
                results[name].append(result)
    return {
        name: {
            key: round(statistics.median(result[key] for result in turns), 1) for key in turns[0]
        }
        for name, turns in results.items()
    }


def table(report: dict) -> str:
    """The report in Markdown."""
    lines = [
        f"Measured {report['date']} on {report['machine']}; medians of {report['rounds']} turns. "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "",
        "| images a second | of processor time, a core | of the clock | MB of a worker's own |",
        "|---|---|---|---|",
    ]
    for name, result in report["results"].items():
        cells = (result.get(key, "") for key in ("per_core", "per_second", "worker_mb"))
        lines.append(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")
    if report["soak"]:
        lines += ["", "| images loaded | MB a worker | MB of the parent | MB in /dev/shm |"]
        lines += ["|---|---|---|---|"]
        lines += [
            f"| {' | '.join(str(value) for value in row.values())} |" for row in report["soak"]
        ]
    return "\n".join(lines) + "\n"


def _declare_torchvision_operators() -> object:
    """Lets a torchvision built for CUDA be imported beside a CPU torch. Keep what it returns."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main(_) -> None:
    """Measures, prints the table, writes both."""
    library = _declare_torchvision_operators()
    root = Path("/tmp/fastervit_loader_benchmark")
    if not root.exists():
        write_photographs(root)
    source = open_source(f"folder:{root}")
    ours, theirs = our_transforms(), timm_transforms()
    names = {
        "evaluation": "decode + evaluation crop",
        "crop": "decode + random crop (distort_on_device)",
        "full": "decode + random crop, flip, RandAugment",
    }
    candidates: dict[str, Candidate] = {}
    for kind, name in names.items():
        candidates[f"{name}: ours"] = one_core(ours[kind], source)
        candidates[f"{name}: timm"] = one_core(on_file(theirs[kind]), source)
    if _TENSORFLOW.value:
        candidates["decode + random crop: tf.data"] = tensorflow_crop(root)
    workers = _WORKERS.value
    for kind in ("evaluation", "crop", "full"):
        for count in (1, workers):
            candidates[f"loader, {count} worker(s), {names[kind]}: ours"] = timed_loader(
                our_loader(source, kind, count), count
            )
        candidates[f"loader, {workers} worker(s), {names[kind]}: torch DataLoader, timm"] = (
            timed_loader(torch_loader(root, kind), workers)
        )
    sizes = [len(source[number].encoded) for number in range(len(source))]
    report = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores of {_processor()}",
        "rounds": _ROUNDS.value,
        "mean_file_kb": round(statistics.mean(sizes) / 1000, 1),
        "versions": {"python": platform.python_version()}
        | {
            name: importlib.metadata.version(name)
            for name in ("pillow", "numpy", "grain", "jax", "torch", "torchvision", "timm")
        },
        "results": take_turns(candidates),
        "soak": soak(source, _SOAK.value) if _SOAK.value else [],
    }
    del library
    print(table(report))
    if _OUTPUT.value:
        output = Path(_OUTPUT.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")
        output.with_suffix(".md").write_text(table(report))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    app.run(main)
