"""The pod table of docs/benchmarks.md: every ImageNet recipe compiled for three TPU topologies.

    python benchmarks/pods.py [--results=benchmarks/results/pods.json] [MODEL_NUMBER:TOPOLOGY …]

compiles each row in a process of its own (which gives its memory back) and writes it to the results
as soon as it is done; rows that are there already are left alone. Without a TPU: `pip install
libtpu`. Twenty-one compilations take hours on a small machine. `--table` prints the results.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
BATCH_SIZE = 4096
# What makes each fit: the larger ones split their state among 16 chips.
SPLIT = {(4, "v5e:16x16"), (5, "v5e:16x16"), (6, "v5e:16x16")}
SPLIT |= {(5, "v6e:16x16"), (6, "v6e:16x16"), (6, "v5p:4x4x4")}
# All but the two smallest as loops, which compile sooner (NOTES.md).
LOOPS = (2, 3, 4, 5, 6)


def flags_of(number: int, topology: str) -> dict:
    """The flags that a row adds to its recipe."""
    split = {"mesh.fsdp": 16} if (number, topology) in SPLIT else {}
    return split | ({"scan_blocks": True} if number in LOOPS else {})


def compile_row(number: int, topology: str) -> dict:
    """Compiles one row, in this process."""
    sys.path.insert(0, str(ROOT))
    import harness
    import jax

    from fastervit_jax.analysis import tpu_cost
    from fastervit_jax.analysis.compile_for import compile_for
    from fastervit_jax.analysis.compile_report import describe
    from fastervit_jax.runs.recipes import load_recipe
    from fastervit_jax.training.classification import Classification

    name = f"faster_vit_{number}_224"
    config = load_recipe(name)
    config.batch_size = BATCH_SIZE
    flags = flags_of(number, topology)
    config.update_from_flattened_dict(flags)
    step = compile_for(Classification(), config, topology)
    print(describe(step), flush=True)
    row = dataclasses.asdict(step)
    if isinstance(step.cost, tpu_cost.TpuCost):
        # In millions of cycles.
        row["kinds"], row["places"] = (
            {name: share * step.cost.cycles / 1e6 for name, share in part.items()}
            for part in (row.pop("by_kind"), row.pop("by_place"))
        )
        row["cost"]["collectives"] = [
            {"kind": kind, "chips": group, "count": count, "bytes": total}
            for (kind, group), (count, total) in step.cost.collectives.items()
        ]
    return row | {
        "model": name,
        "flags": flags,
        "seconds": step.seconds,
        "images_per_second": step.images_per_second(),
        "peak_share": step.peak_share(),
        "date": datetime.date.today().isoformat(),
        "commit": harness.commit(),
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    columns = ["model", "topology", "mesh", "GiB a chip", "G multiply-adds, by hand"]
    columns += ["collectives, MB", "step, ms", "images/s", "of peak", "compiled in"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in sorted(rows, key=lambda row: (row["model"], row["topology"])):
        mesh = "×".join(str(size) for size in row["mesh"].values())
        mesh += ", loops" if row["flags"].get("scan_blocks") else ""
        cells = [row["model"], row["topology"], mesh]
        if row["cost"] is None:
            cells += ["does not fit", *["–"] * 5]
        else:
            cost = row["cost"]
            cells += [
                f"{sum(row['memory'][part] for part in ('arguments', 'temporaries')) / 2**30:.2f}",
                f"{cost['multiply_adds'] / 1e9:.0f}, {row['multiply_adds_by_hand'] / 1e9:.0f}",
                f"{sum(each['bytes'] for each in cost['collectives']) / 1e6:.0f}",
            ]
            if row["seconds"] is None:
                cells += ["unknown"] * 3
            else:
                fast, slow = row["seconds"]
                most, least = row["images_per_second"]
                high, low = row["peak_share"]
                cells += [f"{1e3 * fast:.1f}–{1e3 * slow:.1f}", f"{least:,.0f}–{most:,.0f}"]
                cells += [f"{low:.0%}–{high:.0%}"]
        cells.append(f"{row['compile_seconds']:.0f} s")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shares(rows: list[dict]) -> str:
    """Shares of a step's cycles by kind of operation and by stage, as Markdown."""
    kinds = ("products", "reductions", "elementwise", "moves")
    stages = ("stem", "stage1", "stage2", "stage3", "stage4", "head", "rest")
    lines = [f"| {' | '.join(('model', 'topology', 'million cycles', *kinds, *stages))} |"]
    lines.append("|---" * (3 + len(kinds) + len(stages)) + "|")
    for row in sorted(rows, key=lambda row: (row["model"], row["topology"])):
        if "kinds" not in row:
            continue
        whole = sum(row["kinds"].values())
        parts = [row["kinds"].get(kind, 0) for kind in kinds]
        parts += [
            sum(cycles for place, cycles in row["places"].items() if place.split("/")[0] == stage)
            for stage in stages
        ]
        cells = [row["model"], row["topology"], f"{whole:.1f}"]
        lines.append(f"| {' | '.join(cells + [f'{part / whole:.0%}' for part in parts])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help="such as 0:v5e:16x16; by default all")
    parser.add_argument("--results", default=ROOT / "benchmarks" / "results" / "pods.json")
    parser.add_argument("--table", action="store_true", help="print the results and stop")
    parser.add_argument("--one", help="compile this row here, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        number, _, topology = arguments.one.partition(":")
        print(json.dumps(compile_row(int(number), topology)))
        return
    results = Path(arguments.results)
    rows = json.loads(results.read_text()) if results.exists() else []
    if not arguments.table:
        wanted = [f"{n}:{topology}" for n in range(7) for topology in TOPOLOGIES]
        for row in arguments.rows or wanted:
            number, _, topology = row.partition(":")
            done = {(each["model"], each["topology"]) for each in rows}
            if (f"faster_vit_{number}_224", topology) in done:
                continue
            print(f"\n{row}", flush=True)
            command = [sys.executable, __file__, f"--one={row}"]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            *report, last = result.stdout.splitlines() or [""]
            print("\n".join(report), flush=True)
            if result.returncode:
                print(f"{row} could not be compiled.", flush=True)
                continue
            rows.append(json.loads(last))
            results.parent.mkdir(exist_ok=True)
            results.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{table(rows)}\n\n{shares(rows)}")


if __name__ == "__main__":
    main()
