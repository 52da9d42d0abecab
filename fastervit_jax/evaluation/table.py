"""The published table, measured: every converted model found, on every benchmark at hand."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastervit_jax.data import open_source
from fastervit_jax.evaluation.benchmarks import BENCHMARKS, PUBLISHED, PUBLISHED_ON
from fastervit_jax.evaluation.run import EvaluationOptions, evaluate_task, load_for_evaluation
from fastervit_jax.evaluation.task import open_task, parse_dataset
from fastervit_jax.weights.directory import METADATA, is_converted
from fastervit_jax.weights.loading import Loaded, open_weights

# Points of accuracy: published figures are rounded to one digit.
NEAR = 0.1


@dataclasses.dataclass(frozen=True)
class Cell:
    """A network's accuracy on a benchmark, or why there is none.

    Attributes:
        weights: the converted directory.
        model: its network.
        dataset: what it was measured on.
        benchmark: the benchmark's name.
        numbers: of `Result.summary`; empty where it failed.
        problem: why it failed, or "".
    """

    weights: str
    model: str
    dataset: str
    benchmark: str
    numbers: dict[str, Any]
    problem: str = ""

    @property
    def differs(self) -> bool:
        """Whether an accuracy is more than 0.1 points from the published one."""
        published = PUBLISHED.get(self.model, {}).get(self.benchmark)
        if not self.numbers or not published:
            return False
        pairs = ((self.numbers["top1"], published.top1), (self.numbers["top5"], published.top5))
        return any(abs(100 * share - expected) > NEAR + 1e-9 for share, expected in pairs)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {key: getattr(self, key) for key in ("weights", "model", "dataset", "benchmark")}
        if self.problem:
            return {**plain, "problem": self.problem}
        return {**plain, **self.numbers, "differs": self.differs}


@dataclasses.dataclass(frozen=True)
class Table:
    """All cells, and the benchmarks that were left out, with the reason of each."""

    cells: list[Cell]
    left_out: dict[str, str]

    @property
    def problems(self) -> list[str]:
        """What failed, a sentence each."""
        return [
            f"{cell.weights} on {cell.dataset}: {cell.problem}"
            for cell in self.cells
            if cell.problem
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"table": [cell.as_json() for cell in self.cells], "left_out": self.left_out}

    def markdown(self) -> str:
        """The table for people: measured top-1 / top-5, and the published ones in brackets."""
        benchmarks = list(dict.fromkeys(cell.benchmark for cell in self.cells))
        titles = [BENCHMARKS[name].title for name in benchmarks]
        lines = [
            f"| model | {' | '.join(titles)} |",
            f"|---{'|---' * len(titles)}|",
        ]
        by_place = {(cell.weights, cell.benchmark): cell for cell in self.cells}
        for weights, model in dict.fromkeys((cell.weights, cell.model) for cell in self.cells):
            row = [_text(by_place[weights, name]) for name in benchmarks]
            label = f"`{model}`"
            if Path(weights).name != model:
                label += f" ({Path(weights).name})"
            lines.append(f"| {label} | {' | '.join(row)} |")
        lines += ["", "Top-1 / top-5 in per cent; published ones in brackets."]
        if any(cell.differs for cell in self.cells):
            lines.append(f"**⚠** differs from the published figure by more than {NEAR} points.")
        lines += [f"- {problem}" for problem in self.problems]
        lines += [f"- {BENCHMARKS[name].title}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def _text(cell: Cell) -> str:
    if cell.problem:
        return "failed"
    text = f"{100 * cell.numbers['top1']:.2f} / {100 * cell.numbers['top5']:.2f}"
    published = PUBLISHED.get(cell.model, {}).get(cell.benchmark)
    if published:
        text += f" ({published.top1:.1f} / {published.top5:.1f})"
    return f"**⚠ {text}**" if cell.differs else text


def evaluate_all(
    weights_dir: str,
    datasets: Sequence[str] = (),
    *,
    data_dir: str | None = None,
    real_labels: str | None = None,
    dtype: str | None = None,
    options: EvaluationOptions | None = None,
) -> Table:
    """Evaluates every converted directory below a directory on benchmarks.

    A network that cannot be evaluated leaves a problem in its cells, and the rest goes on.

    Args:
        weights_dir: where to look for converted directories, at any depth.
        datasets: benchmarks, as `--dataset` names them. By default the published four, of which
            those that are not prepared are left out.
        data_dir: where TFDS sets are prepared.
        real_labels: the label file of ImageNet-ReaL.
        dtype: type of the computation; default float32.
        options: how to evaluate.

    Raises:
        ValueError: there are no converted directories or no benchmark, or a named one cannot be
            read.
    """
    options = options or EvaluationOptions()
    directories = sorted(
        file.parent for file in Path(weights_dir).rglob(METADATA) if is_converted(file.parent)
    )
    if not directories:
        raise ValueError(
            f"--weights_dir: {weights_dir} holds no converted weights: make them with "
            f"convert_torch_weights.py, a directory a model."
        )
    present, left_out = _present(datasets, data_dir)
    cells = [
        cell
        for directory in directories
        for cell in _row(directory, present, data_dir, real_labels, dtype, options)
    ]
    return Table(cells, left_out)


def _present(datasets: Sequence[str], data_dir: str | None) -> tuple[list[str], dict[str, str]]:
    """The benchmarks that can be read, and why others cannot."""
    present, left_out = [], {}
    for spec in datasets or PUBLISHED_ON:
        name, where = parse_dataset(spec)
        if name is None:
            raise ValueError(
                f"--all fills the table of benchmarks ({', '.join(BENCHMARKS)}), which {spec} is "
                f"not: write BENCHMARK or BENCHMARK:{spec}."
            )
        try:
            if not BENCHMARKS[name].several_answers:
                open_source(where, data_dir=data_dir)
            present.append(spec)
        except (ValueError, OSError) as error:
            if datasets:
                raise
            left_out[name] = str(error)
    if not present:
        raise ValueError(f"None of the benchmarks can be read. {next(iter(left_out.values()))}")
    return present, left_out


def _row(
    directory: Path,
    datasets: Sequence[str],
    data_dir: str | None,
    real_labels: str | None,
    dtype: str | None,
    options: EvaluationOptions,
) -> list[Cell]:
    """The cells of one network, which is loaded once."""
    model, problem = directory.name, ""
    loaded: Loaded | None = None
    try:
        opened = open_weights(directory)
        model = opened.info.model if opened.info else model
        loaded = load_for_evaluation(opened, None, {}, dtype, options)
    except (ValueError, OSError) as error:
        problem = str(error)
    cells = []
    for spec in datasets:
        benchmark = parse_dataset(spec)[0] or ""
        numbers: dict[str, Any] = {}
        if loaded is not None:
            if options.say:
                options.say(f"{model} ({directory}) on {spec}")
            try:
                task = open_task(
                    spec,
                    model_classes=loaded.info.class_names,
                    num_logits=loaded.model.config.num_classes,
                    data_dir=data_dir,
                    real_labels=real_labels,
                )
                result = evaluate_task(
                    loaded.model, loaded.info, task, weights=str(directory), options=options
                )
                numbers, problem = result.summary(), ""
            except (ValueError, OSError) as error:
                problem = str(error)
        cells.append(Cell(str(directory), model, spec, benchmark, numbers, problem))
    return cells
