"""Match the tensors of a checkpoint with the arrays of a network.

By default, every name and every shape must match. Nothing is skipped silently. Differences are only
allowed if the user asked for them:

- Another number of classes replaces the head.
- Another geometry (resolution, windows, carrier tokens) replaces the parts that depend on it.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Mapping

from fastervit_jax.models import NetworkConfig
from fastervit_jax.weights import torch_buffers
from fastervit_jax.weights.mismatch_hints import likely_causes
from fastervit_jax.weights.names import in_backbone
from fastervit_jax.weights.tensors import joined

Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 5
"""Names of each kind in a message."""

GEOMETRY_OPTIONS = frozenset({"resolution", "window_size", "ct_size", "hat"})


@dataclasses.dataclass(frozen=True)
class Match:
    """Result of matching a checkpoint with a network.

    Attributes:
        taken: names of arrays that are loaded from the checkpoint.
        new: names of arrays that keep their initial values.
        unused: names of tensors of the checkpoint that the network does not use.
        resized: position modules that have another size in the checkpoint.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    resized: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether no array is new and no tensor is unused."""
        return not self.new and not self.unused

    def lines(self) -> list[str]:
        """Returns lines for the user; empty if every tensor was loaded as it is."""
        if self.complete and not self.resized:
            return []
        lines = [f"Loaded {len(self.taken)} of {len(self.taken) + len(self.new)} tensors."]
        if self.new:
            lines.append(f"New, with initial values ({len(self.new)}): {', '.join(self.new)}.")
        if self.unused:
            lines.append(f"Not loaded ({len(self.unused)}): {', '.join(self.unused)}.")
        if self.resized:
            lines.append(f"Position networks loaded for another size: {', '.join(self.resized)}.")
        return lines


def match(
    wanted: Shapes,
    offered: Shapes,
    config: NetworkConfig,
    requested: Iterable[str],
    *,
    checkpoint: str,
) -> Match:
    """Decides which tensors of a checkpoint are loaded into which arrays of a network.

    Args:
        wanted: shapes of the network's arrays, with the names and layout of the checkpoint.
        offered: shapes of the checkpoint's tensors.
        config: configuration of the network.
        requested: options that the user passed. They determine what may differ.
        checkpoint: name of the checkpoint for messages.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape. The message lists them and
            the likely cause.
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
        causes = likely_causes(offered, wanted, config)
        raise ValueError(_refusal(checkpoint, len(taken), problems, causes))
    unused = [name for name in unused if not name.endswith(torch_buffers.SUFFIXES)]
    return Match(tuple(taken), tuple(new), tuple(unused), tuple(resized))


def _refusal(
    checkpoint: str, fitting: int, problems: Mapping[str, list[str]], causes: list[str]
) -> str:
    """Returns at most ten lines: how many tensors do not fit, the cause, some names of each kind.

    All names go into a temporary file where the message leaves some out.
    """
    problems = {what: names for what, names in problems.items() if names}
    counts = ", ".join(f"{len(names)} {what}" for what, names in problems.items())
    lines = [f"{checkpoint} does not fit the model: {counts}; {fitting} tensors fit.", *causes]
    for what, names in problems.items():
        lines.append(f"  {what} ({len(names)}): {joined(names, _SHOWN)}")
    if any(len(names) > _SHOWN for names in problems.values()):
        with tempfile.NamedTemporaryFile(
            "w", prefix="fastervit-mismatch-", suffix=".txt", delete=False
        ) as file:
            for what, names in problems.items():
                file.writelines(f"{what}: {name}\n" for name in names)
        lines.append(f"All names: {file.name}")
    return "\n".join(lines)


class _Differences:
    """Allowed differences between a network and a checkpoint.

    Attributes:
        geometry: whether carrier tokens may have other positions. This is how any_res networks
            load the checkpoint of their square sibling.
        windows: whether windows may have another size.
    """

    def __init__(
        self,
        wanted: Shapes,
        offered: Shapes,
        config: NetworkConfig,
        requested: frozenset[str],
    ):
        self._config = config
        self._offered = offered
        self._head = "num_classes" in requested and any(
            offered.get(name) != wanted.get(name)
            for name in {**wanted, **offered}
            if role(name, config) == "head" and name.endswith(("weight", "kernel"))
        )
        self._carriers = "hat" in requested
        self.geometry = config.backbone.any_res or not GEOMETRY_OPTIONS.isdisjoint(requested)
        self.windows = "window_size" in requested

    def is_new(self, name: str) -> bool:
        """Returns whether an array of the network keeps its initial values."""
        own = role(name, self._config)
        if own == "head":
            return self._head
        if name in self._offered:
            return False
        return (own == "carrier position" and self.geometry) or (
            own in ("carrier position", "carriers") and self._carriers
        )

    def is_unused(self, name: str) -> bool:
        """Returns whether a tensor that is not in the network may be skipped."""
        own, backbone = role(name, self._config), self._config.backbone
        if own == "head":
            return self._head
        if own == "backbone":
            return False
        if self._carriers:
            return True
        stage = int(in_backbone(name).split(".")[1])
        in_hat = backbone.hat is not None and backbone.hat[stage]
        # Carrier tokens without positions, or one window, which needs no carrier tokens.
        without_use = own == "carrier position" or not backbone.geometry(stage).hierarchical
        return self.geometry and in_hat and without_use


def _check_buffers(
    offered: Shapes, config: NetworkConfig, allowed: _Differences
) -> tuple[set[str], list[str], list[str]]:
    """Returns names of known buffers, position modules of another size, and wrong shapes."""
    statistics = (name for name in offered if name.endswith("running_mean"))
    known = {name.replace("running_mean", torch_buffers.COUNT) for name in statistics}
    resized, wrong = [], []
    in_file = next((name for name in offered if in_backbone(name) != name), "")
    prefix = in_file.removesuffix(in_backbone(in_file))
    for module in torch_buffers.position_modules(config.backbone):
        shapes = {prefix + name: shape for name, shape in module.shapes.items()}
        known.update(shapes)
        differing = {
            name: shape
            for name, shape in shapes.items()
            if name in offered and offered[name] != shape
        }
        # The bias of a window includes its carrier tokens, so its size does not determine the
        # size of the window.
        only_tokens = (
            all(name.endswith(torch_buffers.BIAS) for name in differing) and module.relative
        )
        by_geometry = module.of_carriers or only_tokens
        if differing and not (allowed.geometry if by_geometry else allowed.windows):
            wrong += [_both_shapes(name, offered[name], shape) for name, shape in differing.items()]
        elif differing and not only_tokens:
            resized.append(module.name)
    return known, resized, wrong


def role(name: str, config: NetworkConfig) -> str:
    """Returns the role of an array, given our name or the official one."""
    if name.startswith(tuple(f"{module}." for module in config.class_modules)):
        return "head"
    name = in_backbone(name)
    if not re.match(r"(levels|stages)\.[0-3]\.", name):
        return "backbone"
    if re.search(r"\.(carrier_position|hat_pos_embed)\.", name):
        return "carrier position"
    if re.search(r"\.(carrier_\w+|global_tokenizer|hat_\w+|gamma[12])(\.|$)", name):
        return "carriers"
    return "backbone"


def _both_shapes(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> str:
    return f"{name} (expected {_by(ours)}, got {_by(theirs)})"


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"
