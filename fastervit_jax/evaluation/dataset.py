"""Open the data set of `--dataset`: a data set, or a benchmark with its classes and crop."""

import dataclasses
from collections.abc import Sequence

from fastervit_jax.data import Source, open_source
from fastervit_jax.data.preprocessing import CropMode
from fastervit_jax.evaluation.benchmarks import BENCHMARKS, Benchmark
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.evaluation.label_space import label_space, relabeled
from fastervit_jax.evaluation.real_labels import RealLabels, open_real_labels, open_real_set


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A data set that is matched with the classes of a network.

    Attributes:
        spec: value of `--dataset`.
        benchmark: name of the benchmark, or None.
        title: name for the user.
        source: the images. Labels and class names are those that can be predicted.
        logits: indices of the network's outputs to use; None means all.
        crop: crop mode and fraction of the benchmark, or None.
        real_labels: correct classes of each image if there can be several, or None.
        remark: text for the user, or "".
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
    """Splits `--dataset` into the name of a benchmark and a data set.

    `imagenet-a` returns its name and its TFDS data set. `imagenet-a:folder:PATH` returns its name
    and the folder. For anything else the name is None.

    Raises:
        ValueError: there is nothing after the name of a benchmark and a colon.
    """
    name, separator, rest = spec.partition(":")
    if name not in BENCHMARKS:
        return None, spec
    if separator and not rest:
        raise ValueError(f"Invalid data set {spec!r}: expected {name} or {name}:folder:PATH.")
    return name, rest or BENCHMARKS[name].tfds


def open_evaluation_set(
    spec: str,
    *,
    model_classes: Sequence[str] | None,
    num_logits: int,
    data_dir: str | None = None,
    real_labels: str | None = None,
) -> EvaluationSet:
    """Opens a data set and matches its classes with those of a network.

    Args:
        spec: `NAME` of a benchmark, `NAME:SPEC` for the images of a benchmark in another place, or
            `SPEC` (see `fastervit_jax.data.open_source`).
        model_classes: classes of the network in the order of its logits. None means that the
            weights do not store them. A network with 1000 outputs then has the classes of
            ImageNet-1K.
        num_logits: number of outputs of the network.
        data_dir: directory of the prepared TFDS data sets.
        real_labels: path of `real.json` of ImageNet-ReaL. Not needed for its TFDS data set.

    Raises:
        ValueError: the data set cannot be read, or does not fit the network. The message says why.
    """
    if not num_logits:
        raise ValueError("The network has no head (num_classes=0) and cannot be evaluated.")
    name, where = parse_dataset(spec)
    benchmark = BENCHMARKS[name] if name else None
    if real_labels and not (benchmark and benchmark.several_answers):
        raise ValueError("Invalid --real_labels: it requires --dataset=imagenet-real.")
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
        # Every class folder has images. TFDS data sets may declare classes without images.
        strict=not where.startswith("tfds:"),
    )
    answers = None
    if benchmark and benchmark.several_answers:
        # ReaL labels are class indices of ImageNet-1K, even if a folder has fewer classes.
        place = {name: number for number, name in enumerate(space.class_names)}
        answer = tuple(place.get(name, -1) for name in imagenet_1k())
        answers = open_real_labels(source, real_labels, answer)
    return EvaluationSet(
        spec=spec,
        benchmark=name,
        title=benchmark.title if benchmark else _title(spec),
        source=relabeled(source, space),
        logits=space.logits,
        crop=benchmark.crop if benchmark else None,
        real_labels=answers,
        remark=space.remark,
    )


def _title(spec: str) -> str:
    """Returns the title of a data set: the name of a folder, or the specification."""
    if not spec.startswith("folder:"):
        return spec
    return spec.rstrip("/").rpartition("/")[2].removeprefix("folder:")


def _identifiers(names: Sequence[str], benchmark: Benchmark | None) -> Sequence[str]:
    """Returns class identifiers if the folders of a benchmark are named by numbers."""
    if not (benchmark and benchmark.numbered and all(name.isdecimal() for name in names)):
        return names
    outside = [name for name in names if int(name) >= len(imagenet_1k())]
    if outside:
        raise ValueError(
            f"Invalid class folder {outside[0]!r} of {benchmark.title}: expected 0 to "
            f"{len(imagenet_1k()) - 1}."
        )
    return [imagenet_1k()[int(name)] for name in names]
