"""From a data set's classes to a network's logits, by class identifier."""

import dataclasses
from collections.abc import Sequence

from fastervit_jax.data import Example, Source


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """Which logits the answers are taken over, and what a data set's labels mean among them.

    Attributes:
        class_names: the classes that can be answered, in the order of `logits`.
        logits: their places in the network's output, or None for all of it in its own order.
        answer: for each label of the data set its place in `class_names`, -1 where it has none.
        remark: what a person should know, or "".
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
        data_classes: the data set's classes, in the order of its labels.
        model_classes: the network's, in the order of its logits; None where nobody knows, and then
            data set and network must have equally many, and are matched by place.
        num_logits: outputs of the network.
        over: the classes that answers are taken over, such as ImageNet-A's 200; by default all.
        strict: refuse a class of the data set that cannot be answered. Otherwise only an image of
            it is an error: TFDS declares all 1000 classes for sets that hold images of 200.

    Raises:
        ValueError: a class is unknown, or comes twice, or there are more than the network has.
    """
    _check_once(data_classes, "The data set")
    if model_classes is None:
        return _by_place(data_classes, num_logits)
    if len(model_classes) != num_logits:
        raise ValueError(
            f"The weights name {len(model_classes)} classes, but the network has {num_logits} "
            f"outputs: these are weights of another task."
        )
    _check_once(model_classes, "The network")
    place = {name: number for number, name in enumerate(model_classes)}
    answers = tuple(model_classes if over is None else over)
    absent = [name for name in answers if name not in place]
    if absent:
        raise ValueError(
            f"The network has no class {_some(absent)} of the {len(answers)} that this set is "
            f"answered in: it needs weights for ImageNet-1K's classes."
        )
    position = {name: number for number, name in enumerate(answers)}
    unknown = [name for name in data_classes if name not in position]
    if unknown and (strict or len(unknown) == len(data_classes)):
        wanted = f"such as {answers[0]}"
        raise ValueError(
            f"The data set has {len(data_classes)} classes, and {len(unknown)} of them are none of "
            f"the {len(answers)} that can be answered ({wanted}): {_some(unknown)}. Name the class "
            f"folders as the network's classes, or use weights for these classes."
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
            f"The network has {num_logits} classes and the data set {len(data_classes)}, and the "
            f"weights do not name theirs: use weights for these classes, or another data set."
        )
    return LabelSpace(
        class_names=tuple(data_classes),
        logits=None,
        answer=tuple(range(num_logits)),
        remark="The weights do not name their classes: matched with the data set's by their order.",
    )


def _check_once(names: Sequence[str], whose: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if twice:
        raise ValueError(f"{whose} has the class {_some(twice)} twice: correct its class names.")


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _coverage(data_classes: Sequence[str], answers: Sequence[str]) -> str:
    if len(data_classes) == len(answers):
        return ""
    return f"{len(data_classes)} of the {len(answers)} classes have images."


def _some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


@dataclasses.dataclass(frozen=True)
class RelabelledSource:
    """A data set whose labels count in a label space.

    Attributes:
        source: the data set as it is.
        class_names: of the label space.
        answer: for each label of `source` its new one, -1 where there is none.
    """

    source: Source
    class_names: tuple[str, ...]
    answer: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if not 0 <= example.label < len(self.answer):
            raise ValueError(
                f"{example.key} has the label {example.label}, outside 0 … {len(self.answer) - 1}: "
                f"correct it, or choose a split that has labels."
            )
        label = self.answer[example.label]
        if label < 0:
            raise ValueError(
                f"{example.key} is of class {self.source.class_names[example.label]!r}, which is "
                f"none of the {len(self.class_names)} classes that can be answered: this is "
                f"another set than its name says."
            )
        return example._replace(label=label)


def relabelled(source: Source, space: LabelSpace) -> Source:
    """The data set with labels that count in the label space."""
    if space.answer == tuple(range(len(space.class_names))):
        return source
    return RelabelledSource(source, space.class_names, space.answer)
