"""Draws throughput against published accuracy, from the records of inference.py or gpu.sh.

    python benchmarks/picture.py benchmarks/results/inference_cpu.json --batch 1 --output FILE.png
    python benchmarks/picture.py benchmarks/results/gpu_h100.json --batch 128 --output FILE.png

As the paper's first figure, for ours and the official code on the same device. Accuracy is the
published one of the official weights, ImageNet-1K top-1 at 224 pixels (the official repository).
"""

import argparse
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")

PUBLISHED = (82.1, 83.2, 84.2, 84.9, 85.4, 85.6, 85.8)
LABELS = {
    "ours_deployed": "FasterViT-JAX, deployed",
    "ours": "FasterViT-JAX",
    "compiled_deployed": "official, torch.compile, deployed",
    "compiled": "official, torch.compile",
    "eager": "official, eager",
}


def number_of(model: str) -> int:
    """The number of a model: 3 for faster_vit_3_224."""
    return int(model.split("_")[2])


def as_rates(record: dict) -> dict:
    """A record of gpu.sh with rows as inference.py writes them."""
    rows = []
    for row in record["rows"]:
        if record["worker"] == "ours":
            candidate = "ours_deployed" if row["deployed"] else "ours"
        else:
            candidate = "eager" if row["how"] == "eager" else "compiled_deployed"
        name = f"faster_vit_{row['model']}_224"
        rows.append({"model": name, "batch": row["batch"], candidate: row["images_per_second"]})
    return {**record, "rows": rows, "settings": {"dtype": "bfloat16"}}


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("records", type=Path, nargs="+", help="JSON files of inference.py")
    flags.add_argument("--batch", type=int, required=True)
    flags.add_argument("--output", type=Path, required=True)
    arguments = flags.parse_args()
    # A file holds one record, or a list of those that answer a question together.
    contents = [json.loads(path.read_text()) for path in arguments.records]
    records = [r for c in contents for r in (c if isinstance(c, list) else [c])]
    devices = {record["device"] for record in records}
    if len(devices) > 1:
        raise SystemExit(f"The records are of different devices: {', '.join(sorted(devices))}.")
    if records[0].get("question") == "gpu":
        records = [as_rates(record) for record in records if record["worker"] in ("ours", "theirs")]
    rows = [row for record in records for row in record["rows"] if row["batch"] == arguments.batch]
    if not rows:
        raise SystemExit(f"The records have no rows for batches of {arguments.batch}.")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for candidate, label in LABELS.items():
        # A model that was not measured leaves a gap in the line.
        models = sorted({row["model"] for row in rows}, key=number_of)
        measured = {
            model: max(
                (row[candidate] for row in rows if row["model"] == model and candidate in row),
                default=float("nan"),
            )
            for model in models
        }
        if any(candidate in row for row in rows):
            rates = [measured[model] for model in models]
            accuracies = [PUBLISHED[number_of(model)] for model in models]
            style = "-" if candidate.startswith("ours") else "--"
            axes.plot(rates, accuracies, style, marker="o", label=label)
    for model in {row["model"] for row in rows}:
        number = number_of(model)
        fastest = max(
            row[key] for row in rows if row["model"] == model for key in LABELS if key in row
        )
        axes.annotate(
            f"FasterViT-{number}",
            (fastest, PUBLISHED[number]),
            textcoords="offset points",
            xytext=(6, 4),
        )
    axes.set_xscale("log")
    axes.margins(x=0.2)  # room for the names
    axes.set_xlabel(f"images per second, batch {arguments.batch}")
    axes.set_ylabel("published top-1 accuracy, %")
    record = records[0]
    versions = ", ".join(f"{key} {record['versions'][key]}" for key in ("jax", "torch"))
    axes.set_title(f"{record['device']}, {record['settings']['dtype']}\n{versions}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=150)


if __name__ == "__main__":
    main()
