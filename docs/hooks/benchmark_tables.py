"""The tables of `benchmarks.md` and `reliability.md`, from the records in benchmarks/results."""

import json
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def _rows(question: str) -> list[dict]:
    """All rows of a question: a file holds one record, or a list of records."""
    content = json.loads((RESULTS / f"{question}.json").read_text())
    records = content if isinstance(content, list) else [content]
    return [row for record in records for row in record.get("rows", [record])]


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def inference_cpu() -> str:
    """Images per second of a forward pass on one core."""
    return _table(
        ["model", "batch", "ours", "ours, deployed", "ours / eager", "ours / compiled"],
        [
            [
                f"`{row['model']}`",
                str(row["batch"]),
                _number(row["ours"]),
                _number(row["ours_deployed"]),
                _ratio(row.get("ratio_eager")),
                _ratio(row.get("ratio_plain")),
            ]
            for row in _rows("inference_cpu")
        ],
    )


def training_step_cpu() -> str:
    """Images per second of a training step on one core."""
    return _table(
        ["model", "batch", "torch eager", "ours", "ours / eager"],
        [
            [
                f"`{row['model']}`",
                str(row["batch"]),
                _number(row["eager"]),
                _number(row["ours"]),
                _ratio(row["ratio_eager"]),
            ]
            for row in _rows("training_step_cpu")
        ],
    )


def tpu_forward() -> str:
    """The TPU compiler's estimate of a forward pass of 128 images on one chip."""
    chips = {"v5e": 0, "v5p": 1, "v6e": 2}
    rows = sorted(
        _rows("tpu_estimate_forward"),
        key=lambda row: (row["model"], chips[row["chip"].split(":")[0]]),
    )
    return _table(
        ["model", "chip", "million cycles", "ms", "images/s", "share of peak"],
        [
            [
                f"`{row['model']}`",
                row["chip"].split(":")[0],
                f"{row['mcycles']:.2f}",
                f"{row['ms']:.1f}",
                f"{1000 * row['batch'] / row['ms']:,.0f}",
                f"{row['ratio_peak']:.0%}",
            ]
            for row in rows
        ],
    )


def tpu_step() -> str:
    """The TPU compiler's estimate of a training step on one chip."""
    return _table(
        ["model", "chip", "images", "million cycles", "ms", "share of peak"],
        [
            [
                f"`{row['model']}`",
                row["chip"].split(":")[0],
                str(row["batch"]),
                f"{row['mcycles']:.2f}",
                f"{row['ms']:.1f}",
                f"{row['ratio_peak']:.0%}",
            ]
            for row in _rows("tpu_estimate_step")
        ],
    )


def pods() -> str:
    """The TPU compiler's estimate of the recipes' steps on pods."""
    rows = []
    for row in _rows("pods"):
        fast, slow = (1000 * seconds for seconds in row["seconds"])
        slow_rate, fast_rate = sorted(row["images_per_second"])
        rows.append(
            [
                f"`{row['model']}`",
                row["topology"],
                " × ".join(str(size) for size in row["mesh"].values()),
                f"{sum(row['memory'][part] for part in ('arguments', 'temporaries')) / 2**30:.1f}",
                f"{fast:.0f} to {slow:.0f}",
                f"{slow_rate:,.0f} to {fast_rate:,.0f}",
            ]
        )
    return _table(
        ["model", "topology", "mesh", "GiB per chip", "step, ms", "images/s"],
        sorted(rows, key=lambda row: (row[0], row[1])),
    )


def growth_cpu() -> str:
    """Cost against image size."""
    rows = _rows("growth_cpu")
    first = rows[0]
    return _table(
        [
            "pixels per side",
            "GMACs",
            "× those of 224",
            "ours, ms",
            "× that of 224",
            "torch eager, ms",
        ],
        [
            [
                str(row["side"]),
                f"{row['gmacs_hand']:.1f}",
                f"{row['gmacs_hand'] / first['gmacs_hand']:.1f}",
                f"{row['ms_ours']:.0f}",
                f"{row['ms_ours'] / first['ms_ours']:.1f}",
                f"{row['ms_eager']:.0f}",
            ]
            for row in rows
        ],
    )


def limits_cpu() -> str:
    """How near each part of the network comes to the fastest it could be, on one core."""
    names = {
        "whole": "whole network",
        "stem": "stem",
        "stages.0": "stage 1",
        "stages.1": "stage 2",
        "stages.2": "stage 3",
        "stages.2.tokenizer": "stage 3: carrier tokenizer",
        "stages.2.carrier.attention": "stage 3: attention of carriers",
        "stages.2.carrier.mlp": "stage 3: MLP of carriers",
        "stages.2.window.attention": "stage 3: attention in windows",
        "stages.2.window.mlp": "stage 3: MLP in windows",
        "stages.3": "stage 4",
        "head": "head",
    }
    return _table(
        ["part", "times", "ms", "share of time", "GMACs", "share of limit"],
        [
            [
                names[row["part"]],
                str(row["number"]),
                f"{row['ms']:.1f}",
                f"{row['share']:.1%}",
                f"{row['gmacs']:.3f}",
                f"{row['ratio_floor']:.0%}",
            ]
            for row in _rows("limits_cpu")
            if row["part"] in names
        ],
    )


def loader() -> str:
    """Images per second and core on the host."""
    results = json.loads((RESULTS / "loader.json").read_text())["results"]
    work = {
        "decode + evaluation crop": "decode, evaluation crop",
        "decode + random crop (distort_on_device)": "decode, random crop",
        "decode + random crop, flip, RandAugment": "decode, random crop, flip, RandAugment",
    }
    return _table(
        ["what", "ours", "timm"],
        [
            [
                meaning,
                *(f"{results[f'{key}: {who}']['per_core']:.0f}" for who in ("ours", "timm")),
            ]
            for key, meaning in work.items()
        ],
    )


def loader_workers() -> str:
    """Images per second of two worker processes, and the memory of one."""
    results = json.loads((RESULTS / "loader.json").read_text())["results"]
    name = "loader, 2 worker(s), decode + random crop, flip, RandAugment"
    who = {"ours": "ours", "torch DataLoader, timm": "torch `DataLoader`, timm"}
    return _table(
        ["two workers", "images/s", "memory per worker"],
        [
            [
                meaning,
                f"{results[f'{name}: {key}']['per_second']:.0f}",
                f"{results[f'{name}: {key}']['worker_mb']:.0f} MB",
            ]
            for key, meaning in who.items()
        ],
    )


def saving() -> str:
    """Seconds that saving takes."""
    seconds = json.loads((RESULTS / "saving.json").read_text())["median_seconds"]
    names = {
        "ours, until it returns": "save, until training continues",
        "ours, the rest in the background": "save, the rest in a thread",
        "Orbax, synchronous": "synchronous save with Orbax",
        "restore, with checksums": "restore, with checksums",
    }
    return _table(
        ["what", "seconds"], [[name, f"{seconds[key]:.2f}"] for key, name in names.items()]
    )


def _gpu(worker: str) -> list[dict]:
    """Rows of the workers of `benchmarks/gpu.py` whose name begins like this."""
    records = json.loads((RESULTS / "gpu_h100.json").read_text())
    return [
        row for record in records if record["worker"].startswith(worker) for row in record["rows"]
    ]


def _fastest(rows: list[dict]) -> dict | None:
    return min(rows, key=lambda row: row["ms"], default=None)


def gpu_inference() -> str:
    """Images per second of a forward pass of 128 images on an H100."""
    records = json.loads((RESULTS / "gpu_h100.json").read_text())
    peak = max(record["ceilings"]["product_tflop_s"] for record in records if "ceilings" in record)
    ours, theirs = ([row for row in _gpu(who) if row["batch"] == 128] for who in ("ours", "theirs"))
    lines = []
    for number in sorted({row["model"] for row in ours}):
        mine = [row for row in ours if row["model"] == number and "step" not in row["name"]]
        official = [row for row in theirs if row["model"] == number and "step" not in row["name"]]
        best, compiled = _fastest(mine), _fastest(official)
        eager = _fastest([row for row in official if row["how"] == "eager"])
        assert best is not None and compiled is not None
        share = best["images_per_second"] * best["gflop_per_image"] / 1e3 / peak
        lines.append(
            [
                f"`faster_vit_{number}_224`",
                f"{best['images_per_second']:,.0f}",
                f"{best['ms']:.2f}",
                "–" if eager is None else _ratio(eager["ms"] / best["ms"]),
                _ratio(compiled["ms"] / best["ms"]),
                f"{share:.0%}",
            ]
        )
    columns = ["model", "images/s", "ms", "ours / eager", "ours / compiled", "share of peak"]
    return _table(columns, lines)


def gpu_step() -> str:
    """Images per second of a training step of 128 images on an H100."""
    ours = _gpu("ours_step")
    theirs = _gpu("theirs_step")
    lines = []
    for number in sorted({row["model"] for row in ours}):
        best = _fastest([row for row in ours if row["model"] == number])
        assert best is not None
        ratios = []
        for how in ("eager", "compiled"):
            other = _fastest([r for r in theirs if r["model"] == number and r["how"] == how])
            ratios.append("–" if other is None else _ratio(other["ms"] / best["ms"]))
        name, rate = f"`faster_vit_{number}_224`", f"{best['images_per_second']:,.0f}"
        lines.append([name, rate, f"{best['ms']:.1f}", *ratios])
    return _table(["model", "images/s", "ms", "ours / eager", "ours / compiled"], lines)


def _estimates(program: str, measured: dict[int, float]) -> str:
    """A table of the programs before the changes for GPUs, of those measured, and of today's."""

    def of(question: str) -> dict[str, dict]:
        return {row["model"]: row for row in _rows(question) if row["program"] == program}

    def times(row: dict) -> str:
        if row["ms"] is None:
            return f"over {row['known_ms']:.1f}"
        return f"{row['ms']:.1f} to {row['longest_ms']:.1f}"

    before, then = of("gpu_estimate_before"), of("gpu_estimate_measured")
    lines = []
    for name, row in of(f"gpu_estimate_{'step' if program == 'step' else 'forward'}").items():
        old, now, took = before[name], times(row), "–"
        if row["ms"] is not None:
            now += f" ({row['longest_ms'] / old['longest_ms']:.2f})"
        if name in then:
            ms = measured[int(name.split("_")[2])]
            took = f"{ms:.1f} ({ms / then[name]['longest_ms']:.2f})"
        lines.append(
            [
                f"`{name}`",
                f"{old['kernels']:,} → {row['kernels']:,}",
                f"{old['moved_gb']:.1f} → {row['moved_gb']:.1f}",
                times(old),
                now,
                took,
            ]
        )
    columns = ["model", "kernels", "GB moved", "estimate before, ms", "estimate now, ms"]
    return _table([*columns, "measured, ms"], lines)


def gpu_estimate_forward() -> str:
    """Estimates of the deployed forward pass of 128 images on an H100, beside measurements."""
    rows = [row for row in _gpu("ours") if row["batch"] == 128 and "step" not in row["name"]]
    return _estimates("deployed", _fastest_by_model(rows))


def gpu_estimate_step() -> str:
    """Estimates of the training step of 128 images on an H100, beside measurements."""
    return _estimates("step", _fastest_by_model(_gpu("ours_step")))


def _fastest_by_model(rows: list[dict]) -> dict[int, float]:
    fastest: dict[int, float] = {}
    for row in rows:
        fastest[row["model"]] = min(row["ms"], fastest.get(row["model"], row["ms"]))
    return fastest


def segmentation_cpu() -> str:
    """Seconds of UperNet's forward pass and training step on one core, beside torch."""
    rows = _rows("segmentation_cpu")
    return _beside_torch(rows, [f"{row['side']} × {row['side']}" for row in rows])


def detection_cpu() -> str:
    """Seconds of DINO's forward pass and training step on one core, beside torch."""
    rows = _rows("detection_cpu")
    return _beside_torch(rows, [f"{row['height']} × {row['width']}" for row in rows])


def _beside_torch(rows: list[dict], sizes: list[str]) -> str:
    columns = ["model", "images", "program", "torch, s", "ours, s", "torch / ours"]
    return _table(
        columns,
        [
            [
                f"`{row['model']}`",
                f"{row['batch']} of {size}",
                row["program"],
                f"{row['torch']:.2f}",
                f"{row['ours']:.2f}",
                _ratio(row["ratio"]),
            ]
            for row, size in zip(rows, sizes, strict=True)
        ],
    )


def estimate_recipes() -> str:
    """Estimates of detectors and segmenters on one GPU or TPU chip."""

    def milliseconds(row: dict) -> str:
        if row["ms"] is None:
            return f"unknown; the known part {row['known_ms']:.0f}"
        return f"{row['ms']:.1f} to {row['longest_ms']:.1f}"

    return _table(
        ["recipe", "chip", "program", "multiply-adds, G", "ms", "memory, GB"],
        [
            [
                f"`{row['model']}`",
                row["chip"].split(":")[0],
                f"{row['program']}, {row['batch']} images",
                f"{row['gmacs']:,.0f}",
                milliseconds(row),
                f"{row['memory_gb']:.1f}",
            ]
            for row in _rows("estimate_recipes")
        ],
    )


def kills() -> str:
    """Disturbances of runs by kind, over all records."""
    counts: Counter[str] = Counter()
    for record in json.loads((RESULTS / "kills.json").read_text()):
        counts.update(record["by_kind"])
    rows = [[kind, str(count)] for kind, count in sorted(counts.items())]
    return _table(["disturbance", "times"], [*rows, ["all", str(sum(counts.values()))]])


def kills_total() -> str:
    """One sentence: how many runs there were, and how many were not as they must be."""
    records = json.loads((RESULTS / "kills.json").read_text())
    runs = sum(sum(record["runs"].values()) for record in records)
    starts = sum(record["starts"] for record in records)
    alarms = [each for record in records for each in record["unequal"]]
    # A false alarm of the script is explained in the record.
    wrong = sum("explained" not in each for each in alarms)
    open_ended = sum("compared afterwards" not in each.get("explained", "") for each in alarms)
    return (
        f"{runs:,} runs, {starts:,} starts of a process. {runs - open_ended:,} runs were continued "
        f"to the end and compared: {wrong or 'none'} differed. The other {open_ended} ended in "
        "alarms of the script itself, which the record explains."
    )


def whole_runs() -> str:
    """Whole runs of ours beside those of the official recipe: differences of means."""
    lines = []
    for row in _whole_runs():
        if row["side"] != "ours":
            continue
        for measure, values in row["measures"].items():
            unit = " %" if "top-1" in measure else ""
            digits = 2 if unit else 3
            low, high = (f"{end:+.{digits}f}" for end in values["interval"])
            lines.append(
                [
                    row["recipe"],
                    measure,
                    f"{values['official']:.{digits}f}{unit}",
                    f"{values['mean']:.{digits}f}{unit}",
                    f"{values['difference']:+.{digits}f} ({low} to {high})",
                    "yes" if measure in row["told_apart"] else "no",
                ]
            )
    return _table(["recipe", "measure", "official", "ours", "difference", "told apart"], lines)


def whole_runs_planted() -> str:
    """The planted mistakes, and the measures that tell them from the official runs."""
    lines = []
    for row in _whole_runs():
        if row["side"] == "ours":
            continue
        measures = row["measures"]
        shown = [f"{measures[each]['difference']:+.3f}" for each in ("loss, EMA", "training loss")]
        mesa = f"{measures['MESA']['difference']:+.4f}"
        lines.append([row["side"], *shown, mesa, ", ".join(row["told_apart"]) or "nothing"])
    return _table(["mistake", "loss, EMA", "training loss", "MESA", "told apart by"], lines)


def _whole_runs() -> list[dict]:
    return json.loads((RESULTS / "whole_runs.json").read_text())["compared"]


def damaged_files() -> str:
    """Damaged files by kind, and what became of them."""
    names = {
        "jpeg": "JPEG",
        "png": "PNG",
        "webp": "WebP",
        "gif": "GIF",
        "tiff": "TIFF",
        "bmp": "BMP",
        "loader": "folders of images, through the loader",
        "mask": "masks",
        "coco": "COCO JSON",
        "config": "`config.json` of a run",
        "metadata": "`metadata.json` of converted weights",
        "converted": "safetensors of converted weights",
        "safetensors": "official safetensors",
        "torch_zip": "torch files",
        "torch_pickle": "torch files before 1.6",
        "orbax": "Orbax checkpoints",
    }
    by_kind = {kind: Counter[str]() for kind in names}
    for record in json.loads((RESULTS / "damaged_files.json").read_text()):
        for kind, answers in record["by_kind"].items():
            by_kind[kind].update(answers)
    return _table(
        ["file", "damaged", "refused", "read", "wrong"],
        [
            [
                name,
                *(f"{by_kind[kind][key]:,}" for key in ("files", "refused", "read", "wrong")),
            ]
            for kind, name in names.items()
        ],
    )


def damaged_files_total() -> str:
    """One sentence: the most memory that reading a damaged file took."""
    records = json.loads((RESULTS / "damaged_files.json").read_text())
    most = max(record["most_mebibytes"] for record in records)
    return f"Reading them took at most {most:,} MiB of memory beyond that of the imports."


def serving_cpu() -> str:
    """Milliseconds of FasterViT on one core, in JAX, torch and the ONNX runtimes."""
    names = {
        "eager": ("official", "torch eager"),
        "ours_deployed": ("ours, deployed", "JAX"),
        "torch_onnxruntime": ("official, exported by torch", "onnxruntime"),
        "ours_onnxruntime": ("ours, exported", "onnxruntime"),
        "int8_onnxruntime": ("ours, int8", "onnxruntime"),
        "torch_openvino": ("official, exported by torch", "OpenVINO"),
        "ours_openvino": ("ours, exported", "OpenVINO"),
        "int8_openvino": ("ours, int8", "OpenVINO"),
    }
    rows = _rows("serving_cpu")
    (model,) = {row["model"] for row in rows}
    return _table(
        [f"`{model}`", "runs in", *(f"batch {row['batch']}, ms" for row in rows)],
        [[*words, *(f"{row['ms'][name]:.0f}" for row in rows)] for name, words in names.items()],
    )


def int8_digits() -> str:
    """What int8 costs on the held-out digits."""
    record = json.loads((RESULTS / "int8_digits.json").read_text())
    names = {
        "float32": "float32",
        "onnxruntime": "int8, onnxruntime",
        "openvino": "int8, OpenVINO",
    }
    return _table(
        ["network", "digits right", "top-1", "same class as float32", "error of logits"],
        [
            [
                names[row["network"]],
                f"{row['right']} of {record['images']}",
                f"{row['right'] / record['images']:.1%}",
                f"{row['same_class']:.1%}",
                f"{row['error']:.1%}" if row["error"] else "–",
            ]
            for row in record["rows"]
        ],
    )


TABLES = {
    "serving_cpu": serving_cpu,
    "int8_digits": int8_digits,
    "estimate_recipes": estimate_recipes,
    "kills": kills,
    "kills_total": kills_total,
    "whole_runs": whole_runs,
    "whole_runs_planted": whole_runs_planted,
    "damaged_files": damaged_files,
    "damaged_files_total": damaged_files_total,
    "segmentation_cpu": segmentation_cpu,
    "detection_cpu": detection_cpu,
    "gpu_estimate_forward": gpu_estimate_forward,
    "gpu_estimate_step": gpu_estimate_step,
    "gpu_inference": gpu_inference,
    "gpu_step": gpu_step,
    "inference_cpu": inference_cpu,
    "training_step_cpu": training_step_cpu,
    "tpu_forward": tpu_forward,
    "tpu_step": tpu_step,
    "pods": pods,
    "growth_cpu": growth_cpu,
    "limits_cpu": limits_cpu,
    "loader": loader,
    "loader_workers": loader_workers,
    "saving": saving,
}
