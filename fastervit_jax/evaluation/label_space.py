"""Match the classes of a data set with the logits of a network, by class identifier."""

import dataclasses
from collections.abc import Sequence

from fastervit_jax.data import Example, Source
from fastervit_jax.data.sources import natural_key


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The classes that can be predicted, and how the labels of a data set map to them.

    Attributes:
        class_names: the classes that can be predicted, in the order of `logits`.
        logits: indices of these classes in the network's output; None means all outputs.
        answer: for each label of the data set, its index in `class_names`, or -1.
        remark: text for the user, or "".
    """

    class_names: tuple[str, ...]
    logits: tuple[int, ...] | None
    answer: tuple[int, ...]
    remark: str = ""


def label_space(
    data_classes: Sequence[str],
    model_classes: Sequence[str] | None,
    num_logits: int,
    *,
    over: Sequence[str] | None = None,
    strict: bool = True,
) -> LabelSpace:
    """Matches classes by name.

    Args:
        data_classes: classes of the data set, in the order of its labels.
        model_classes: classes of the network, in the order of its logits. None means unknown. The
            data set must then have as many classes, and classes are matched by index.
        num_logits: number of outputs of the network.
        over: the classes that can be predicted, such as the 200 of ImageNet-A; by default all.
        strict: whether to reject a data set with classes that cannot be predicted. Otherwise only
            an image of such a class is an error. TFDS declares 1000 classes for data sets with
            images of 200 classes.

    Raises:
        ValueError: a class is unknown or appears twice, or the number of classes is wrong.
    """
    _check_once(data_classes, "The data set")
    if model_classes is None:
        return _by_place(data_classes, num_logits)
    if len(model_classes) != num_logits:
        raise ValueError(
            f"Invalid weights: expected {num_logits} class names, one per output of the network, "
            f"got {len(model_classes)}. The weights belong to another model."
        )
    _check_once(model_classes, "The network")
    place = {name: number for number, name in enumerate(model_classes)}
    answers = tuple(model_classes if over is None else over)
    absent = [name for name in answers if name not in place]
    if absent:
        raise ValueError(
            f"This data set is evaluated on {len(answers)} classes, but the network does not have "
            f"the class {_some(absent)}. Use weights for the classes of ImageNet-1K."
        )
    position = {name: number for number, name in enumerate(answers)}
    unknown = [name for name in data_classes if name not in position]
    if unknown and (strict or len(unknown) == len(data_classes)):
        raise ValueError(
            f"{len(unknown)} of the {len(data_classes)} classes of the data set are not among the "
            f"{len(answers)} classes that can be predicted (such as {answers[0]}): "
            f"{_some(unknown)}. Name the class folders like the classes of the network, or use "
            "weights for these classes."
        )
    every = tuple(answers) == tuple(model_classes)
    return LabelSpace(
        class_names=answers,
        logits=None if every else tuple(place[name] for name in answers),
        answer=tuple(position.get(name, -1) for name in data_classes),
        remark=_coverage(data_classes, answers) if strict else "",
    )


def _by_place(data_classes: Sequence[str], num_logits: int) -> LabelSpace:
    if len(data_classes) != num_logits:
        raise ValueError(
            f"Invalid data set: expected {num_logits} classes, the number of classes of the "
            f"network, got {len(data_classes)}. The weights do not store class names. Use weights "
            "for these classes, or another data set."
        )
    return LabelSpace(
        class_names=tuple(data_classes),
        logits=None,
        answer=tuple(range(num_logits)),
        remark=f"The weights do not store class names. {_order_warning(data_classes)}",
    )


def _order_warning(names: Sequence[str]) -> str:
    if sorted(names) == sorted(names, key=natural_key):
        return "Classes are matched by their order."
    return (
        "Warning: classes are matched by their order, and these names have two usual orders. This "
        f"data set uses the natural one, as timm does ({names[0]}, {names[1]}, …). If the accuracy "
        f"is near chance, the weights may be trained with plain sorted names "
        f"({', '.join(sorted(names)[:2])}, …)."
    )


def _check_once(names: Sequence[str], whose: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if twice:
        raise ValueError(f"{whose} has the class {_some(twice)} twice. Correct its class names.")


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _coverage(data_classes: Sequence[str], answers: Sequence[str]) -> str:
    if len(data_classes) == len(answers):
        return ""
    return f"{len(data_classes)} of the {len(answers)} classes have images."


def _some(names: Sequence[str]) -> str:
    """Returns the first three names and the number of the others."""
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


@dataclasses.dataclass(frozen=True)
class RelabeledSource:
    """A data set with the labels of a label space.

    Attributes:
        source: the original data set.
        class_names: class names of the label space.
        answer: for each label of `source`, the new label, or -1.
    """

    source: Source
    class_names: tuple[str, ...]
    answer: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if not 0 <= example.label < len(self.answer):
            raise ValueError(
                f"Invalid label of {example.key}: expected 0 to {len(self.answer) - 1}, got "
                f"{example.label}. Correct the label, or choose a split that has labels."
            )
        label = self.answer[example.label]
        if label < 0:
            raise ValueError(
                f"{example.key} has the class {self.source.class_names[example.label]!r}, which is "
                f"not among the {len(self.class_names)} classes of this benchmark. Check that this "
                "is the right data set."
            )
        return example._replace(label=label)


def relabeled(source: Source, space: LabelSpace) -> Source:
    """Returns the data set with the labels of a label space."""
    if space.answer == tuple(range(len(space.class_names))):
        return source
    return RelabeledSource(source, space.class_names, space.answer)
