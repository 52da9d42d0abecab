"""Every array accounted for: which tensor of a checkpoint fills which array of a network.

Nothing is left out silently. By default the two must agree in every name and shape. What may differ
is what was asked for: another number of classes replaces the head, another geometry (resolution,
windows, carrier tokens) the parts that exist only for some geometries.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from fastervit_jax.conversion import buffers
from fastervit_jax.conversion.causes import likely_causes
from fastervit_jax.conversion.tensors import joined
from fastervit_jax.models import FasterViTConfig

Shapes = Mapping[str, tuple[int, ...]]

GEOMETRY_OPTIONS = frozenset({"resolution", "window_size", "ct_size", "hat"})


@dataclasses.dataclass(frozen=True)
class Match:
    """What a checkpoint gives to a network.

    Attributes:
        taken: names that are filled from the checkpoint.
        new: names that keep their initial values.
        unused: the checkpoint's tensors that the network has no place for.
        resized: position modules whose coordinates are those of another size in the checkpoint.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    resized: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the network is the checkpoint's own, nothing new and nothing left over."""
        return not self.new and not self.unused

    def lines(self) -> list[str]:
        """What a person should know, a line a group; empty if nothing is new or left out."""
        if self.complete and not self.resized:
            return []
        lines = [f"Taken over: {len(self.taken)} of {len(self.taken) + len(self.new)} tensors."]
        if self.new:
            lines.append(f"New, with initial values ({len(self.new)}): {', '.join(self.new)}.")
        if self.unused:
            lines.append(f"Not taken over ({len(self.unused)}): {', '.join(self.unused)}.")
        if self.resized:
            lines.append(
                f"Position networks taken over for another size: {', '.join(self.resized)}."
            )
        return lines


def match(
    wanted: Shapes,
    offered: Shapes,
    config: FasterViTConfig,
    requested: Iterable[str],
    *,
    checkpoint: str,
) -> Match:
    """Decides which of the offered tensors fill the wanted arrays.

    Args:
        wanted: shapes of the network's arrays, by the checkpoint's names and in its layout.
        offered: shapes of the checkpoint's tensors.
        config: of the network.
        requested: options that the user gave: what may differ follows from them.
        checkpoint: what messages call the checkpoint.

    Raises:
        ValueError: lists what is missing, unexpected or of another shape, and the likely cause.
    """
    requested = frozenset(requested)
    known_buffers, resized, wrong = _check_buffers(offered, config, requested)
    taken, new, missing = [], [], []
    for name, shape in wanted.items():
        if offered.get(name) == shape:
            taken.append(name)
        elif _may_be_new(name, config, requested):
            new.append(name)
        elif name in offered:
            wrong.append(_both_shapes(name, offered[name], shape))
        else:
            missing.append(name)
    unused: list[str] = []
    unexpected: list[str] = []
    for name in offered:
        if name not in wanted and name not in known_buffers:
            (unused if _may_be_unused(name, config, requested) else unexpected).append(name)
    # The head's old weights, where classes differ, have a name that the network knows.
    unused += [name for name in new if name in offered]

    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    if any(problems.values()):
        lines = [f"{checkpoint} does not fit the model:"]
        lines += [
            f"  {what} ({len(names)}): {joined(names)}" for what, names in problems.items() if names
        ]
        raise ValueError("\n".join(lines + likely_causes(offered, wanted, config)))
    unused = [name for name in unused if not name.endswith(buffers.SUFFIXES)]
    return Match(tuple(taken), tuple(new), tuple(unused), tuple(resized))


def _check_buffers(
    offered: Shapes, config: FasterViTConfig, requested: frozenset[str]
) -> tuple[set[str], list[str], list[str]]:
    """Names of known buffers, position modules of another size, and shapes that are wrong."""
    statistics = (name for name in offered if name.endswith("running_mean"))
    known = {name.replace("running_mean", buffers.COUNT) for name in statistics}
    resized, wrong = [], []
    other_geometry = config.any_res or bool(requested & GEOMETRY_OPTIONS)
    for module in buffers.position_modules(config):
        known.update(module.shapes)
        differing = {
            name: shape
            for name, shape in module.shapes.items()
            if name in offered and offered[name] != shape
        }
        # The bias of a window covers its carrier tokens too: its size alone says nothing of the
        # window's.
        only_tokens = all(name.endswith(buffers.BIAS) for name in differing) and module.relative
        may_differ = (
            other_geometry if module.of_carriers or only_tokens else "window_size" in requested
        )
        if differing and may_differ:
            if not only_tokens:
                resized.append(module.name)
        elif differing:
            wrong += [_both_shapes(name, offered[name], shape) for name, shape in differing.items()]
    return known, resized, wrong


def _may_be_new(name: str, config: FasterViTConfig, requested: frozenset[str]) -> bool:
    role = _role(name)
    if role == "head":
        return "num_classes" in requested
    if role == "carrier position":
        return config.any_res or bool(requested & GEOMETRY_OPTIONS)
    return role == "carriers" and "hat" in requested


def _may_be_unused(name: str, config: FasterViTConfig, requested: frozenset[str]) -> bool:
    role = _role(name)
    if role == "head":
        return "num_classes" in requested
    if role == "backbone":
        return False
    if "hat" in requested:
        return True
    if not config.any_res and not requested & GEOMETRY_OPTIONS:
        return False
    found = re.match(r"(?:levels|stages)\.([0-3])\.", name)
    stage = int(found[1]) if found else 0
    if not (config.hat and config.hat[stage]):
        return False
    # A stage of a single window has no use for its carrier tokens.
    return role == "carrier position" or not config.geometry(stage).hierarchical


def _role(name: str) -> str:
    """What an array is for, by our name or the official one."""
    if name.startswith("head."):
        return "head"
    if not re.match(r"(levels|stages)\.[0-3]\.", name):
        return "backbone"
    if re.search(r"\.(carrier_position|hat_pos_embed)\.", name):
        return "carrier position"
    if re.search(r"\.(carrier_\w+|global_tokenizer|hat_\w+|gamma[12])(\.|$)", name):
        return "carriers"
    return "backbone"


def _both_shapes(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    return f"{name} ({_by(theirs)} there, {_by(ours)} here)"


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
