"""What a run leaves to look at: `metrics.jsonl`, TensorBoard events, `curves.png`."""

import json
import math
from pathlib import Path

from etils import epath


class Reporter:
    """Writes records to `metrics.jsonl`, one JSON object a line, to TensorBoard, and elsewhere.

    A run that goes on from a step drops the records of later steps, so each stands there once.
    """

    def __init__(self, workdir: epath.Path, *, resume_step: int, wandb_project: str = ""):
        """Opens the files.

        Args:
            workdir: the work directory.
            resume_step: records of later steps are dropped.
            wandb_project: also log to this Weights & Biases project.

        Raises:
            ImportError: Weights & Biases is asked for and not installed.
        """
        import tensorboardX

        self._wandb = _start_wandb(wandb_project, workdir)

        self._path = workdir / "metrics.jsonl"
        records = [r for r in read_metrics(workdir) if r["step"] <= resume_step]
        temporary = workdir / "metrics.jsonl.tmp"
        temporary.write_text("".join(_line(record) for record in records))
        temporary.replace(self._path)
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=resume_step + 1)

    def write(self, step: int, **values: float) -> None:
        """Records values at a step."""
        record = {"step": step, **{key: _number(value) for key, value in values.items()}}
        self._file.write(_line(record))
        self._file.flush()
        for key, value in record.items():
            if key != "step" and value is not None:
                self._board.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log(record, step=step)

    def close(self) -> None:
        """Finishes the files."""
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def _start_wandb(project: str, workdir: epath.Path):
    """A Weights & Biases run, named by its directory so that a resumed run goes on; or None."""
    if not project:
        return None
    try:
        import wandb
    except ImportError:
        raise ImportError(
            f"config.wandb_project={project!r} needs Weights & Biases: pip install wandb."
        ) from None
    return wandb.init(project=project, name=workdir.name, id=workdir.name, resume="allow")


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """The records of a run, oldest first; a last line cut off by a crash is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _number(value) -> int | float | None:
    """A JSON number; what is not finite becomes null, which JSON has and NaN it has not."""
    if isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


_PANELS = [
    ("loss", {"loss": "training", "validation_loss": "validation"}),
    ("top-1", {"validation_top1": "validation"}),
    ("learning rate", {"learning_rate": "learning rate"}),
    ("gradient norm", {"gradient_norm": "before clipping"}),
]


def draw_curves(workdir: epath.PathLike) -> None:
    """Draws `curves.png` from `metrics.jsonl`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_metrics(workdir)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (title, lines) in zip(axes.flat, _PANELS, strict=True):
        for key, label in lines.items():
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, values, label=label, marker="." if len(points) < 60 else None)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if axis.lines and len(lines) > 1:
            axis.legend()
    best = max((r["validation_top1"] for r in records if r.get("validation_top1")), default=None)
    if best is not None:
        figure.suptitle(f"{Path(str(workdir)).name}: best validation top-1 {best:.2%}")
    _save(figure, epath.Path(workdir) / "curves.png")
    plt.close(figure)


def _save(figure, path: epath.Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
