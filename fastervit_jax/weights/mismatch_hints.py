"""Guess from the shapes of a checkpoint why it does not fit a network."""

import re
from collections.abc import Mapping
from typing import Any

from fastervit_jax.models import VARIANTS, NetworkConfig
from fastervit_jax.models.config import ATTENTION_STAGES
from fastervit_jax.weights.names import in_backbone
from fastervit_jax.weights.torch_buffers import TABLE

Shapes = Mapping[str, tuple[int, ...]]

_HEADS = ("head.weight", "transformer.decoder.class_embed.0.weight")
_STEM, _STEM_OUT = "patch_embed.conv_down.0.weight", "patch_embed.conv_down.3.weight"


def likely_causes(offered: Shapes, wanted: Shapes, config: NetworkConfig) -> list[str]:
    """Returns the likely causes why an official checkpoint does not fit, one sentence each.

    Args:
        offered: shapes of the checkpoint's tensors, by official name.
        wanted: shapes of the network's arrays, by official name.
        config: configuration of the network.

    Returns:
        The sentences; empty if the cause is unknown.
    """
    offered = {in_backbone(name): shape for name, shape in offered.items()}
    wanted = {in_backbone(name): shape for name, shape in wanted.items()}
    if _STEM not in wanted:  # our names: a converted directory, which stores its model
        return []
    theirs, ours = _task(offered), _task(wanted)
    if _STEM in offered and theirs != ours:
        return [f"Likely cause: the file belongs to {theirs}. Expected weights of {ours}."]
    if _STEM not in offered:
        return ["Likely cause: the file belongs to another network. Its names are not FasterViT's."]
    found, own = _architecture(offered), _architecture(wanted)
    if found != own:
        alike = [name for name in VARIANTS if _is_variant(name, found)]
        guess = f" Its sizes are those of {' or '.join(alike)}." if alike else ""
        return [
            f"Likely cause: the file belongs to another model.{guess} Expected {_text(own)}, got "
            f"{_text(found)}."
        ]

    causes = []
    windows = _windows(offered)
    other_windows = {
        stage: side for stage, side in windows.items() if side != config.backbone.window_size[stage]
    }
    if other_windows:
        needed = tuple(
            windows.get(stage, side) for stage, side in enumerate(config.backbone.window_size)
        )
        causes.append(f"Likely cause: other windows. The checkpoint has window_size={needed}.")
    head = next((name for name in _HEADS if name in wanted), _HEADS[0])
    if offered.get(head) != wanted.get(head):
        classes = offered.get(head, (0,))[0]
        causes.append(
            f"Likely cause: other classes. The checkpoint has {classes} classes, the model has "
            f"{config.num_classes}. Pass num_classes={classes} to keep the head of the checkpoint, "
            f"or num_classes={config.num_classes} to start with a new head."
        )
    their_stages, our_stages = _carrier_stages(offered), _carrier_stages(wanted)
    if their_stages != our_stages:
        causes.append(
            "Likely cause: carrier tokens in other stages. The checkpoint has them in "
            f"{_stages(their_stages)}, the model in {_stages(our_stages)} (counted from 1). Pass "
            "hat, one true or false per stage, to add new ones or to omit them."
        )
    return causes


def _task(shapes: Shapes) -> str:
    """Returns what a network does, from the names around its backbone."""
    for beginning, task in (("transformer.", "a detector"), ("decode_head.", "a segmenter")):
        if any(name.startswith(beginning) for name in shapes):
            return task
    return "a classifier"


def _architecture(shapes: Shapes) -> dict[str, Any]:
    """Returns the sizes that distinguish the published networks."""
    blocks = {match.groups() for name in shapes if (match := _BLOCK.match(name))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4))
    return {
        "dim": shapes.get(_STEM_OUT, (0,))[0],
        "in_dim": shapes[_STEM][0],
        "depths": depths,
    }


_BLOCK = re.compile(r"levels\.(\d)\.blocks\.(\d+)\.")


def _is_variant(name: str, architecture: dict[str, Any]) -> bool:
    return all(VARIANTS[name][option] == value for option, value in architecture.items())


def _windows(shapes: Shapes) -> dict[int, int]:
    """Returns window sides by stage, from the stored coordinate tables."""
    names = {s: f"levels.{s}.blocks.0.attn.pos_emb_funct.{TABLE}" for s in ATTENTION_STAGES}
    return {stage: (shapes[name][1] + 1) // 2 for stage, name in names.items() if name in shapes}


def _carrier_stages(shapes: Shapes) -> list[int]:
    return [
        stage + 1 for stage in range(4) if f"levels.{stage}.blocks.0.hat_attn.qkv.weight" in shapes
    ]


def _stages(stages: list[int]) -> str:
    return f"stages {', '.join(map(str, stages))}" if stages else "no stage"


def _text(architecture: dict[str, Any]) -> str:
    return ", ".join(f"{option} {value}" for option, value in architecture.items())
