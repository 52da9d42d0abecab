"""Guessing why a checkpoint does not fit: what its shapes say that it is."""

import re
from collections.abc import Mapping
from typing import Any

from fastervit_jax.models import VARIANTS, FasterViTConfig
from fastervit_jax.models.config import ATTENTION_STAGES
from fastervit_jax.weights.torch_buffers import TABLE

Shapes = Mapping[str, tuple[int, ...]]

_STEM, _STEM_OUT = "patch_embed.conv_down.0.weight", "patch_embed.conv_down.3.weight"


def likely_causes(offered: Shapes, wanted: Shapes, config: FasterViTConfig) -> list[str]:
    """Why an official checkpoint most likely does not fit, a sentence each; empty if unknown.

    Args:
        offered: shapes of the checkpoint's tensors by official name.
        wanted: shapes of the network's, by official name.
        config: of the network.
    """
    if _STEM not in wanted:  # names are ours: a converted directory, which says what it is
        return []
    if _STEM not in offered:
        return ["Likely cause: these are not FasterViT's names; it is another network's file."]
    found, own = _architecture(offered), _architecture(wanted)
    if found != own:
        alike = [name for name in VARIANTS if _is_variant(name, found)]
        guess = f"its sizes are those of {' or '.join(alike)}" if alike else "its sizes are others"
        return [f"Likely cause: another model's file; {guess} ({_text(found)}; here {_text(own)})."]

    causes = []
    windows = _windows(offered)
    other_windows = {
        stage: side for stage, side in windows.items() if side != config.window_size[stage]
    }
    if other_windows:
        needed = tuple(windows.get(stage, side) for stage, side in enumerate(config.window_size))
        causes.append(f"Likely cause: other windows; the checkpoint's are window_size={needed}.")
    if offered.get("head.weight") != wanted.get("head.weight"):
        classes = offered.get("head.weight", (0,))[0]
        causes.append(
            f"Likely cause: other classes; the checkpoint has {classes}, the model "
            f"{config.num_classes}. num_classes={classes} keeps its head; giving "
            f"num_classes={config.num_classes} yourself starts a new one."
        )
    theirs, ours = _carrier_stages(offered), _carrier_stages(wanted)
    if theirs != ours:
        causes.append(
            f"Likely cause: carrier tokens in other stages; the checkpoint has them in "
            f"{theirs or 'none'}, the model in {ours or 'none'} (counted from 1). Giving hat, a "
            f"true or false for each stage, starts new ones or leaves them out."
        )
    return causes


def _architecture(shapes: Shapes) -> dict[str, Any]:
    """Sizes that tell one published network from another."""
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
    """Window sides by stage, as far as the stored coordinate tables tell."""
    names = {s: f"levels.{s}.blocks.0.attn.pos_emb_funct.{TABLE}" for s in ATTENTION_STAGES}
    return {stage: (shapes[name][1] + 1) // 2 for stage, name in names.items() if name in shapes}


def _carrier_stages(shapes: Shapes) -> list[int]:
    return [
        stage + 1 for stage in range(4) if f"levels.{stage}.blocks.0.hat_attn.qkv.weight" in shapes
    ]


def _text(architecture: dict[str, Any]) -> str:
    return ", ".join(f"{option} {value}" for option, value in architecture.items())
