"""Every array accounted for: which tensor of a checkpoint fills which array of a network.

Nothing is left out silently. By default the two must agree in every name and shape. What may differ
is what was asked for: another number of classes replaces the head, another geometry (resolution,
windows, carrier tokens) the parts that exist only for some geometries.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from fastervit_jax.models import FasterViTConfig
from fastervit_jax.weights import torch_buffers
from fastervit_jax.weights.mismatch_hints import likely_causes
from fastervit_jax.weights.tensors import joined

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
    allowed = _Differences(wanted, offered, config, frozenset(requested))
    known_buffers, resized, wrong = _check_buffers(offered, config, allowed)
    taken, new, missing = [], [], []
    for name, shape in wanted.items():
        if allowed.is_new(name):
            new.append(name)
        elif name not in offered:
            missing.append(name)
        elif offered[name] == shape:
            taken.append(name)
        else:
            wrong.append(_both_shapes(name, offered[name], shape))
    unused = [name for name in new if name in offered]  # a head for other classes
    unexpected: list[str] = []
    for name in offered:
        if name not in wanted and name not in known_buffers:
            (unused if allowed.is_unused(name) else unexpected).append(name)

    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    if any(problems.values()):
        lines = [f"{checkpoint} does not fit the model:"]
        lines += [
            f"  {what} ({len(names)}): {joined(names)}" for what, names in problems.items() if names
        ]
        raise ValueError("\n".join(lines + likely_causes(offered, wanted, config)))
    unused = [name for name in unused if not name.endswith(torch_buffers.SUFFIXES)]
    return Match(tuple(taken), tuple(new), tuple(unused), tuple(resized))


class _Differences:
    """What may differ between a network and a checkpoint, by what was asked for.

    Attributes:
        geometry: carrier tokens may have other positions: any_res networks start so from a square
            one's checkpoint.
        windows: windows may have another size.
    """

    def __init__(
        self,
        wanted: Shapes,
        offered: Shapes,
        config: FasterViTConfig,
        requested: frozenset[str],
    ):
        self._config = config
        self._offered = offered
        head = ("head.weight", "head.kernel")  # official and ours
        self._head = "num_classes" in requested and any(
            offered.get(name) != wanted.get(name) for name in head
        )
        self._carriers = "hat" in requested
        self.geometry = config.any_res or not GEOMETRY_OPTIONS.isdisjoint(requested)
        self.windows = "window_size" in requested

    def is_new(self, name: str) -> bool:
        """Whether an array of the network keeps its initial values."""
        role = _role(name)
        if role == "head":
            return self._head
        if name in self._offered:
            return False
        return (role == "carrier position" and self.geometry) or (
            role in ("carrier position", "carriers") and self._carriers
        )

    def is_unused(self, name: str) -> bool:
        """Whether a tensor that the network has no place for may be left behind."""
        role = _role(name)
        if role == "head":
            return self._head
        if role == "backbone":
            return False
        if self._carriers:
            return True
        stage = int(name.split(".")[1])
        in_hat = self._config.hat is not None and self._config.hat[stage]
        # Carrier tokens without positions, or a single window, which needs none.
        without_use = role == "carrier position" or not self._config.geometry(stage).hierarchical
        return self.geometry and in_hat and without_use


def _check_buffers(
    offered: Shapes, config: FasterViTConfig, allowed: _Differences
) -> tuple[set[str], list[str], list[str]]:
    """Names of known buffers, position modules of another size, and shapes that are wrong."""
    statistics = (name for name in offered if name.endswith("running_mean"))
    known = {name.replace("running_mean", torch_buffers.COUNT) for name in statistics}
    resized, wrong = [], []
    for module in torch_buffers.position_modules(config):
        known.update(module.shapes)
        differing = {
            name: shape
            for name, shape in module.shapes.items()
            if name in offered and offered[name] != shape
        }
        # The bias of a window covers its carrier tokens too: its size alone says nothing of the
        # window's.
        only_tokens = (
            all(name.endswith(torch_buffers.BIAS) for name in differing) and module.relative
        )
        by_geometry = module.of_carriers or only_tokens
        if differing and not (allowed.geometry if by_geometry else allowed.windows):
            wrong += [_both_shapes(name, offered[name], shape) for name, shape in differing.items()]
        elif differing and not only_tokens:
            resized.append(module.name)
    return known, resized, wrong


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
