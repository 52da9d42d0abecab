"""Whole runs of the recipe beside whole runs of the official recipe in torch.

    python -m tests.reference.whole_runs --workdir=DIR --record=benchmarks/results/whole_runs.json

The digits of the quickstart, with everything of the ImageNet recipe on: RandAugment, mixup and
CutMix, erasing, label smoothing, drop path, EMA, MESA, warm-up, cosine, clipping. Ours is
`train.py` and `eval.py`; theirs is `official_run.py`. Each run has a seed, and draws everything
itself: initial weights, order, images, drop path. Two mistakes are planted in ours: MESA left out,
and drop path that drops whole images in window attention, where the official unit is the window.

A run is one process on one core; `--processes` run at a time. Runs that are in DIR are not
repeated, so the same command resumes. `--draw=FILE` draws the picture from the record and runs
nothing.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

from fastervit_jax.data.paths import write_whole
from fastervit_jax.data.sources.digits import write_digits
from fastervit_jax.runs.recipes import load_recipe

ROOT = Path(__file__).parents[2]

DIGITS = load_recipe("digits")
NETWORK = ("dim", "in_dim", "depths", "window_size", "ct_size", "resolution", "num_classes")
RECIPE = {
    **{name: DIGITS.model[name] for name in NETWORK},
    "drop_path": 0.2,
    "scale": DIGITS.crop.scale,
    "ratio": DIGITS.crop.ratio,
    "batch_size": DIGITS.batch_size,
    "epochs": 20,
    "warmup_epochs": 3,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "ema_decay": 0.98,
    "mesa": 0.1,
    "mesa_start": 0.25,
}
RECIPES = {
    "adamw": {},
    "lamb": {"optimizer": "lamb", "learning_rate": 1e-2, "weight_decay": 0.12},
    "fine-tuning": {"epochs": 8, "warmup_epochs": 1, "learning_rate": 5e-4},
}
PLANTED = {
    "without MESA": {"mesa": 0.0},
    "drop path by image": {"drop_path_by_image": True},
}
PRETRAINING = {"epochs": 10, "num_classes": 5, "seed": 100}
"""Of the weights that fine-tuning starts from: the classes 0 to 4, by the official recipe."""

MEASURES = ("top-1, EMA", "top-1, plain", "loss, EMA", "loss, plain", "training loss", "MESA")
"""What is compared; top-1 in %. The last two are means of the last quarter of the steps: the loss
without MESA, and MESA with its weight."""

SIGNIFICANCE = 0.05
"""Of all measures of a comparison together (Holm's correction)."""


def main() -> None:
    """Runs what is missing, and writes the record."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--workdir", type=Path, default=Path("runs/whole_runs"))
    arguments.add_argument("--record", type=Path, default=None, help="JSON file to write")
    arguments.add_argument("--recipes", default=",".join(RECIPES))
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--epochs", type=int, default=None, help="fewer, for a short form")
    arguments.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--no_planted", action="store_true", help="no planted mistakes")
    arguments.add_argument("--draw", type=Path, default=None, help="PNG file of the record's runs")
    options = arguments.parse_args()
    if options.seeds < 2:
        raise SystemExit(f"Invalid --seeds={options.seeds}: expected 2 or more, for a spread.")
    if options.draw:
        draw(json.loads(options.record.read_text()), options.draw)
        return
    root = options.workdir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    write_digits(root / "digits")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")  # of the processes it starts
    short = {"epochs": options.epochs, "warmup_epochs": 1}
    changed = {} if options.epochs is None else short
    names = options.recipes.split(",")
    if "fine-tuning" in names:
        pretrain(root, changed)
    groups = {
        f"{name}, {side}": {**RECIPE, **RECIPES[name], **changed}
        for name in names
        for side in ("official", "ours")
    }
    if not options.no_planted:
        groups |= {
            f"adamw, {name}": {**RECIPE, **change, **changed} for name, change in PLANTED.items()
        }
    record = {"runs": run_all(root, groups, options.seeds, options.processes)}
    record["compared"] = compare(record["runs"])
    record["recipe"], record["recipes"] = RECIPE, RECIPES
    if options.record:
        write_whole(options.record, json.dumps(record, indent=1) + "\n")
    for row in record["compared"]:
        print(json.dumps(row))


def run_all(root: Path, groups: dict, seeds: int, processes: int) -> list[dict]:
    """Runs each group with each seed; returns a summary of each run."""
    cores: queue.Queue[int] = queue.Queue()
    for core in sorted(os.sched_getaffinity(0))[:processes]:
        cores.put(core)
    todo = [(group, seed) for seed in range(seeds) for group in groups]

    def one(item: tuple[str, int]) -> dict:
        group, seed = item
        path = root / f"{group.replace(', ', '_').replace(' ', '_')}_{seed}"
        core = cores.get()
        try:
            result = run_one(path, root, group, {**groups[group], "seed": seed}, core)
        finally:
            cores.put(core)
        print(f"{group}, seed {seed}: {result['ema']} {result['seconds']:.0f} s", flush=True)
        return {"group": group, "seed": seed, **summary(result)}

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, todo))


def run_one(path: Path, root: Path, group: str, options: dict, core: int) -> dict:
    """The result of a run, from its file if it is there."""
    file = path.with_suffix(".json")
    if file.exists():
        return json.loads(file.read_text())
    options = {"data": str(root / "digits"), **options}
    if group.startswith("fine-tuning"):
        options["weights"] = str(root / "five_classes.pth.tar")
    theirs = group.endswith("official")
    result = official(options, core) if theirs else ours(path, options, core)
    write_whole(file, json.dumps(result))
    return result


def official(options: dict, core: int) -> dict:
    """A run of the official recipe."""
    command = ["-m", "tests.reference.official_run", json.dumps(options)]
    return json.loads(_python(command, core).splitlines()[-1])


def pretrain(root: Path, changed: dict) -> None:
    """Trains the official network on five classes, for fine-tuning to start from."""
    path, digits = root / "five_classes.pth.tar", root / "five_digits"
    if path.exists():
        return
    for split in ("train", "validation"):
        (digits / split).mkdir(parents=True, exist_ok=True)
        for label in range(5):
            link = digits / split / str(label)
            if not link.exists():
                link.symlink_to(root / "digits" / split / str(label))
    options = {**RECIPE, **PRETRAINING, **changed, "data": str(digits), "save": str(path)}
    print(
        "weights of five classes:",
        official(options, min(os.sched_getaffinity(0)))["ema"],
        flush=True,
    )


def ours(path: Path, options: dict, core: int) -> dict:
    """A run of `train.py`, and its evaluations by `eval.py`."""
    started = time.monotonic()
    changes = {
        "data.train": f"folder:{options['data']}/train",
        "data.validation": f"folder:{options['data']}/validation",
        "seed": options["seed"],
        "epochs": options["epochs"],
        "rand_augment": "rand-m9-mstd0.5-inc1",
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "erasing_probability": 0.25,
        "group_size": options["batch_size"],
        "model.drop_path_rate": options["drop_path"],
        "optimizer.name": options["optimizer"],
        "optimizer.learning_rate": options["learning_rate"],
        "optimizer.weight_decay": options["weight_decay"],
        "optimizer.warmup_epochs": float(options["warmup_epochs"]),
        "mesa.weight": options["mesa"],
        "mesa.start": options["mesa_start"],
        "ema_decay": options["ema_decay"],
        "finetune.weights": options.get("weights", ""),
        "evaluation.every_epochs": options["epochs"],
        "checkpoint.every_epochs": options["epochs"],
        "log_every_steps": 1,
    }
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    program = ["train.py"]
    if options.get("drop_path_by_image"):
        program = ["-m", "tests.reference.drop_path_by_image", str(options["batch_size"])]
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    _python([*program, config, f"--workdir={path}", *flags], core)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    mesa = [50 * options["mesa"] * record.get("mesa", 0.0) for record in steps]
    evaluations = {}
    for name, ema in (("ema", True), ("plain", False)):
        command = ["eval.py", f"--weights={path}", f"--ema={ema}", "--num_workers=0"]
        answer = json.loads(_python(command, core).splitlines()[-1])
        evaluations[name] = {"top1": 100 * answer["top1"], "loss": answer["loss"]}
    return {
        "cross_entropy": [r["loss"] - m for r, m in zip(steps, mesa, strict=True)],
        "mesa": mesa,
        **evaluations,
        "seconds": round(time.monotonic() - started, 1),
    }


def _python(arguments: list[str], core: int) -> str:
    command = ["taskset", "-c", str(core), sys.executable, *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def summary(result: dict) -> dict:
    """The measures of a run, and its training loss (without MESA) as means of each epoch."""
    losses, mesa = np.asarray(result["cross_entropy"]), np.asarray(result["mesa"])
    last = -(len(losses) // 4)
    measures = [
        result["ema"]["top1"],
        result["plain"]["top1"],
        result["ema"]["loss"],
        result["plain"]["loss"],
        losses[last:].mean(),
        mesa[last:].mean(),
    ]
    in_parts = np.array_split(losses, max(1, len(losses) // 22))
    return {
        "measures": dict(zip(MEASURES, (round(float(m), 6) for m in measures), strict=True)),
        "curve": [round(float(part.mean()), 5) for part in in_parts],
        "steps": len(losses),
        "seconds": result["seconds"],
    }


def compare(runs: list[dict]) -> list[dict]:
    """Each group against the official runs of its recipe: differences of means, by measure.

    The interval is Welch's, 95 %. `told_apart` names the measures whose difference is not chance,
    at `SIGNIFICANCE` for all measures of the group together.
    """
    by_group: dict[str, list[dict]] = {}
    for run in runs:
        by_group.setdefault(run["group"], []).append(run["measures"])
    rows = []
    for group, found in by_group.items():
        recipe, side = group.split(", ", 1)
        if side == "official":
            continue
        reference, row, chances = by_group[f"{recipe}, official"], {}, {}
        for measure in MEASURES:
            here, there = ([run[measure] for run in each] for each in (found, reference))
            test = stats.ttest_ind(here, there, equal_var=False)
            interval = test.confidence_interval(0.95)
            row[measure] = {
                "mean": float(np.mean(here)),
                "official": float(np.mean(there)),
                "difference": float(np.mean(here) - np.mean(there)),
                "interval": [float(interval.low), float(interval.high)],
                "p": float(test.pvalue),
            }
            chances[measure] = row[measure]["p"]
        told_apart = []
        for place, measure in enumerate(sorted(chances, key=chances.__getitem__)):
            if not chances[measure] * (len(MEASURES) - place) < SIGNIFICANCE:
                break
            told_apart.append(measure)
        rows.append(
            {
                "recipe": recipe,
                "side": side,
                "seeds": len(found),
                "measures": row,
                "told_apart": told_apart,
            }
        )
    return rows


def draw(record: dict, path: Path) -> None:
    """Draws training curves with their spread, and the final accuracies."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    recipes = list(dict.fromkeys(run["group"].split(", ", 1)[0] for run in record["runs"]))
    figure, axes = plt.subplots(2, len(recipes), figsize=(4 * len(recipes), 6.5))
    for column, recipe in zip(np.atleast_2d(axes.T), recipes, strict=True):
        groups = dict.fromkeys(
            run["group"] for run in record["runs"] if run["group"].startswith(f"{recipe}, ")
        )
        for number, group in enumerate(groups):
            runs = [run for run in record["runs"] if run["group"] == group]
            side = group.split(", ", 1)[1]
            label = side if side in ("official", "ours") else f"ours, {side}"
            curves = np.asarray([run["curve"] for run in runs])
            epochs = np.arange(1, curves.shape[1] + 1)
            (line,) = column[0].plot(epochs, curves.mean(0), label=label, linewidth=1.2)
            column[0].fill_between(
                epochs, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2, linewidth=0
            )
            for measure, marker in (("top-1, EMA", "o"), ("top-1, plain", "x")):
                values = [run["measures"][measure] for run in runs]
                column[1].scatter(
                    np.full(len(values), number) + (0.12 if marker == "x" else -0.12),
                    values,
                    marker=marker,
                    color=line.get_color(),
                    label=measure.split(", ")[1] if not number else None,
                    s=22,
                )
        column[0].set(title=recipe, xlabel="epoch", ylabel="training loss without MESA")
        column[0].legend(fontsize=8)
        column[1].set(ylabel="top-1 of each seed, %", xticks=range(len(groups)))
        short = [g.split(", ", 1)[1].replace(" ", "\n") for g in groups]
        column[1].set_xticklabels(short, fontsize=8)
        column[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
