"""What all speed benchmarks share: the machine, taking turns, the record and its table.

Import this first: it sets what JAX and torch read when they start.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

# Both frameworks share one GPU: neither may take all of its memory beforehand.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Run = Callable[[int], None]
"""Does its work the given number of times, and returns when all of it is done."""


class Timing(NamedTuple):
    """Seconds of one call.

    Attributes:
        counted: median over the turns: of the clock on a GPU; on a CPU, which others may use too,
            of processor time.
        wall: median by the clock.
        spread: (largest − smallest) / median of what counts.
    """

    counted: float
    wall: float
    spread: float


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--models", type=int, nargs="*", default=[0, 1, 2], metavar="0..6")
    flags.add_argument("--rounds", type=int, default=7, help="turns of each candidate, 5 or more")
    flags.add_argument("--seconds", type=float, default=0.5, help="of a turn, about")
    flags.add_argument("--cores", type=int, default=1, help="of a CPU; without effect on a GPU")
    flags.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: by the device")
    flags.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/…")
    return flags


def start(arguments: argparse.Namespace) -> str:
    """Prepares both frameworks; returns the device both use, "cpu" or "gpu".

    On a CPU both are held to the same `--cores`: torch's threads wait spinning, which would count
    as processor time.
    """
    if arguments.rounds < 5:
        raise SystemExit(f"--rounds={arguments.rounds}: medians need 5 or more.")
    cores = sorted(os.sched_getaffinity(0))
    if not _has_gpu():
        os.sched_setaffinity(0, cores[: arguments.cores])
    import jax
    import torch

    device = jax.default_backend()
    if device == "cpu":
        torch.set_num_threads(arguments.cores)
    elif not torch.cuda.is_available():
        raise SystemExit(f"JAX computes on a {device}, but torch has no GPU: nothing to compare.")
    # TensorFloat-32 where anything is left in float32, in both.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if arguments.dtype is None:
        arguments.dtype = "float32" if device == "cpu" else "bfloat16"
    return device


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def take_turns(
    candidates: dict[str, Run], *, rounds: int, seconds: float, device: str
) -> dict[str, Timing]:
    """Times candidates in rounds, one after the other, so that all see the same machine.

    Args:
        candidates: what to time, by name.
        rounds: turns of each.
        seconds: of a turn, about: how many calls it has follows from a first one.
        device: "cpu" or "gpu".
    """
    calls = {}
    for name, run in candidates.items():
        run(1)
        took, _ = _timed(run, 1)
        calls[name] = max(1, round(seconds / took))
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            turns[name].append(_timed(run, calls[name]))
    return {name: summary(times, device=device) for name, times in turns.items()}


def summary(turns: Sequence[tuple[float, float]], *, device: str) -> Timing:
    """What turns of (wall, processor) seconds come to."""
    wall, processor = zip(*turns, strict=True)
    counts = processor if device == "cpu" else wall
    median = statistics.median(counts)
    return Timing(median, statistics.median(wall), (max(counts) - min(counts)) / median)


def _timed(run: Run, calls: int) -> tuple[float, float]:
    """Wall and processor seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(calls)
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def first_seconds(run: Run) -> float:
    """Seconds to the first result, compilation included."""
    begin = time.perf_counter()
    run(1)
    return time.perf_counter() - begin


def repeat(function: Callable, *arguments) -> Run:
    """Calls of a JAX function, of which only the last is waited for: they queue up."""
    import jax

    def run(calls: int) -> None:
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)

    return run


class Record:
    """What one run measured; written after every row, so that a run cut short leaves its rows."""

    def __init__(self, question: str, arguments: argparse.Namespace, device: str):
        name = f"{question}_{device}_{date.today().isoformat()}.json"
        self.path = arguments.output or RESULTS / name
        paths = ("output", "dump")
        settings = {key: value for key, value in vars(arguments).items() if key not in paths}
        self.content = {"question": question, **about(device), "settings": settings, "rows": []}
        self.write()

    def add(self, **row) -> None:
        """Adds a row: prints and writes it."""
        self.content["rows"].append(row)
        print(" ".join(f"{key}={_short(value)}" for key, value in row.items()), flush=True)
        self.write()

    def write(self) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")

    def show(self, columns: Sequence[str]) -> None:
        """Prints a table of these keys of all rows."""
        print("\n" + table(self.content["rows"], columns), flush=True)


def table(rows: Sequence[dict], columns: Sequence[str]) -> str:
    """Rows in Markdown."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (_short(row.get(column)) for column in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(value) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def about(device: str) -> dict:
    """Date, versions, device and commit."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "fastervit")
    return {
        "date": date.today().isoformat(),
        "device": _device_name(device),
        "counts": {"cpu": "processor time", "gpu": "the clock"}.get(device, "cycles"),
        "allocator": _allocator(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "commit": commit(),
    }


def version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: str) -> str:
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        flags = next((line for line in lines if line.startswith("flags")), "")
        # A name says little on a rented machine; with the wider vectors everything is faster.
        vectors = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
        name = next(names, platform.processor())
        return f"{len(os.sched_getaffinity(0))} core of {name}, {vectors}"
    if device == "estimate":
        return "none: the compiler's estimates"
    import jax

    return jax.devices()[0].device_kind


def _allocator() -> str:
    """Where this process has its memory from: glibc, or a library that LD_PRELOAD puts before it.

    Found by name among the files in its memory. XLA takes a call's temporaries as one piece, which
    glibc gives back to the system every time.
    """
    libraries = (line.split("/")[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    names = ("tcmalloc", "jemalloc", "mimalloc")
    return next((file for file in libraries if any(name in file for name in names)), "glibc")


def commit() -> str | None:
    """The commit, with a + where files beside the results differ from it.

    Outside a repository it is what the environment's COMMIT says.
    """

    def git(*command: str) -> str:
        done = subprocess.run(
            ("git", *command), cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT")


def forget() -> None:
    """Frees what the last model left behind, in both frameworks."""
    import jax
    import torch

    jax.clear_caches()
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
