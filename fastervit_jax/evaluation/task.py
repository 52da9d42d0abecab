"""What `--dataset` names: a data set, a benchmark, or a benchmark read from somewhere else."""

import dataclasses
from collections.abc import Sequence

from fastervit_jax.data import Source, open_source
from fastervit_jax.data.preprocessing import CropMode
from fastervit_jax.evaluation.benchmarks import BENCHMARKS, Benchmark
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.evaluation.label_space import label_space, relabelled
from fastervit_jax.evaluation.real_labels import RealLabels, open_real_labels, open_real_set


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set made ready for a network.

    Attributes:
        spec: what `--dataset` said.
        benchmark: name of the benchmark it is, or None.
        title: for people.
        source: the images; labels and class names are those that can be answered.
        logits: the network's outputs that answers are taken over; None means all.
        crop: crop mode and fraction that belong to the benchmark, or None.
        real_labels: right answers of each image where there can be several, or None.
        remark: what a person should know, or "".
    """

    spec: str
    benchmark: str | None
    title: str
    source: Source
    logits: tuple[int, ...] | None
    crop: tuple[CropMode, float] | None
    real_labels: RealLabels | None
    remark: str


def parse_dataset(spec: str) -> tuple[str | None, str]:
    """`imagenet-a` → its name and its TFDS set; `imagenet-a:folder:PATH` → its name and the folder.

    Anything else is a data set without a name.
    """
    name, separator, rest = spec.partition(":")
    if name not in BENCHMARKS:
        return None, spec
    if separator and not rest:
        raise ValueError(f"Cannot read the data set {spec!r}: write {name} or {name}:folder:PATH.")
    return name, rest or BENCHMARKS[name].tfds


def open_task(
    spec: str,
    *,
    model_classes: Sequence[str] | None,
    num_logits: int,
    data_dir: str | None = None,
    real_labels: str | None = None,
) -> Task:
    """Opens a data set and matches its classes with a network's.

    Args:
        spec: a benchmark's name, `NAME:SPEC` for a benchmark read from another place, or a SPEC
            (`fastervit_jax.data.open_source`).
        model_classes: the network's classes in the order of its logits; None where its weights do
            not name them, and then a network of 1000 has ImageNet-1K's.
        num_logits: outputs of the network.
        data_dir: where TFDS sets are prepared.
        real_labels: the file `real.json` of ImageNet-ReaL; needed unless its TFDS set is read.

    Raises:
        ValueError: the data cannot be read, or are not for this network; the message says why.
    """
    if not num_logits:
        raise ValueError("The network has no head (num_classes=0): there is nothing to evaluate.")
    name, where = parse_dataset(spec)
    benchmark = BENCHMARKS[name] if name else None
    if real_labels and not (benchmark and benchmark.several_answers):
        raise ValueError("--real_labels belongs to --dataset=imagenet-real alone.")
    from_real_set = benchmark and benchmark.several_answers and where.startswith("tfds:")
    if from_real_set and not real_labels:
        source: Source = open_real_set(where.removeprefix("tfds:"), data_dir=data_dir)
    else:
        source = open_source(where, data_dir=data_dir)
    if model_classes is None and num_logits == 1000:
        model_classes = imagenet_1k()
    data_classes = _identifiers(source.class_names, benchmark)
    space = label_space(
        data_classes,
        model_classes,
        num_logits,
        over=benchmark.over if benchmark else None,
        # Folders hold images of every class they have; TFDS sets declare more than that.
        strict=not where.startswith("tfds:"),
    )
    answers = None
    if benchmark and benchmark.several_answers:
        # ReaL labels are ImageNet-1K's numbers, whatever classes a folder has.
        place = {name: number for number, name in enumerate(space.class_names)}
        answer = tuple(place.get(name, -1) for name in imagenet_1k())
        answers = open_real_labels(source, real_labels, answer)
    return Task(
        spec=spec,
        benchmark=name,
        title=benchmark.title if benchmark else _title(spec),
        source=relabelled(source, space),
        logits=space.logits,
        crop=benchmark.crop if benchmark else None,
        real_labels=answers,
        remark=space.remark,
    )


def _title(spec: str) -> str:
    """What people call a data set: a folder by its name, another set by its specification."""
    if not spec.startswith("folder:"):
        return spec
    return spec.rstrip("/").rpartition("/")[2].removeprefix("folder:")


def _identifiers(names: Sequence[str], benchmark: Benchmark | None) -> Sequence[str]:
    """Class identifiers, where a benchmark's folders are named by numbers."""
    if not (benchmark and benchmark.numbered and all(name.isdecimal() for name in names)):
        return names
    outside = [name for name in names if int(name) >= len(imagenet_1k())]
    if outside:
        raise ValueError(
            f"The class folder {outside[0]!r} is none of 0 … {len(imagenet_1k()) - 1}, which "
            f"{benchmark.title} has."
        )
    return [imagenet_1k()[int(name)] for name in names]
