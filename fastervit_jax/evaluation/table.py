"""Table of accuracies: all converted models on all available benchmarks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastervit_jax.data import open_source
from fastervit_jax.evaluation.benchmarks import BENCHMARKS, PUBLISHED, PUBLISHED_ON
from fastervit_jax.evaluation.dataset import open_evaluation_set, parse_dataset
from fastervit_jax.evaluation.run import EvaluationOptions, evaluate_set, load_for_evaluation
from fastervit_jax.weights.directory import METADATA, is_converted
from fastervit_jax.weights.loading import Loaded, open_weights

# Allowed difference in points. Published values are rounded to one decimal place.
NEAR = 0.1


@dataclasses.dataclass(frozen=True)
class Cell:
    """Accuracy of a network on a benchmark, or the reason why there is none.

    Attributes:
        weights: path of the converted directory.
        model: name of the network.
        dataset: the data set, as in `--dataset`.
        benchmark: name of the benchmark.
        numbers: `Result.summary`; empty if the evaluation failed.
        problem: reason for the failure, or "".
    """

    weights: str
    model: str
    dataset: str
    benchmark: str
    numbers: dict[str, Any]
    problem: str = ""

    @property
    def differs(self) -> bool:
        """Whether an accuracy differs from the published one by more than 0.1 points."""
        published = PUBLISHED.get(self.model, {}).get(self.benchmark)
        if not self.numbers or not published:
            return False
        pairs = ((self.numbers["top1"], published.top1), (self.numbers["top5"], published.top5))
        return any(abs(100 * share - expected) > NEAR + 1e-9 for share, expected in pairs)

    def as_json(self) -> dict[str, Any]:
        """Returns the cell as JSON values."""
        plain = {key: getattr(self, key) for key in ("weights", "model", "dataset", "benchmark")}
        if self.problem:
            return {**plain, "problem": self.problem}
        return {**plain, **self.numbers, "differs": self.differs}


@dataclasses.dataclass(frozen=True)
class Table:
    """All cells, and the reason for each benchmark that was skipped."""

    cells: list[Cell]
    left_out: dict[str, str]

    @property
    def problems(self) -> list[str]:
        """The failures, one sentence each."""
        return [
            f"{cell.weights} on {cell.dataset}: {cell.problem}"
            for cell in self.cells
            if cell.problem
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns the table as JSON values."""
        return {"table": [cell.as_json() for cell in self.cells], "left_out": self.left_out}

    def markdown(self) -> str:
        """Returns the table as Markdown: measured top-1 / top-5, published values in brackets."""
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
        lines += ["", "Top-1 / top-5 accuracy in percent. Published values are in brackets."]
        if any(cell.differs for cell in self.cells):
            lines.append(f"**⚠** differs from the published value by more than {NEAR} points.")
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
    """Evaluates all converted directories in a directory on benchmarks.

    If a network cannot be evaluated, its cells contain the problem and the evaluation continues.

    Args:
        weights_dir: directory that contains converted directories, at any depth.
        datasets: benchmarks, as in `--dataset`. The default is the four benchmarks of the paper,
            without those that are not prepared.
        data_dir: directory of the prepared TFDS data sets.
        real_labels: path of the label file of ImageNet-ReaL.
        dtype: dtype of the computation; default float32.
        options: options of the evaluation.

    Raises:
        ValueError: there are no converted directories or no benchmarks, or a named benchmark cannot
            be read.
    """
    options = options or EvaluationOptions()
    directories = sorted(
        file.parent for file in Path(weights_dir).rglob(METADATA) if is_converted(file.parent)
    )
    if not directories:
        raise ValueError(
            f"Invalid --weights_dir={weights_dir}: it contains no converted weights. Convert each "
            "model to its own directory with convert_torch_weights.py."
        )
    present, left_out = _present(datasets, data_dir)
    cells = [
        cell
        for directory in directories
        for cell in _row(directory, present, data_dir, real_labels, dtype, options)
    ]
    return Table(cells, left_out)


def _present(datasets: Sequence[str], data_dir: str | None) -> tuple[list[str], dict[str, str]]:
    """Returns the benchmarks that can be read, and the problem of each other one."""
    present, left_out = [], {}
    for spec in datasets or PUBLISHED_ON:
        name, where = parse_dataset(spec)
        if name is None:
            raise ValueError(
                f"Invalid --dataset={spec} with --all: expected BENCHMARK or BENCHMARK:{spec}. The "
                f"benchmarks are {', '.join(BENCHMARKS)}."
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
        raise ValueError(f"No benchmark can be read. {next(iter(left_out.values()))}")
    return present, left_out


def _row(
    directory: Path,
    datasets: Sequence[str],
    data_dir: str | None,
    real_labels: str | None,
    dtype: str | None,
    options: EvaluationOptions,
) -> list[Cell]:
    """Returns the cells of one network. The network is loaded once."""
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
                evaluation_set = open_evaluation_set(
                    spec,
                    model_classes=loaded.info.class_names,
                    num_logits=loaded.model.config.num_classes,
                    data_dir=data_dir,
                    real_labels=real_labels,
                )
                result = evaluate_set(
                    loaded.model,
                    loaded.info,
                    evaluation_set,
                    weights=str(directory),
                    options=options,
                )
                numbers, problem = result.summary(), ""
            except (ValueError, OSError) as error:
                problem = str(error)
        cells.append(Cell(str(directory), model, spec, benchmark, numbers, problem))
    return cells
