"""The same network for images of another size (`FasterViT.at_resolution`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import nnx

from fastervit_jax.models.config import ATTENTION_STAGES, FasterViTConfig
from fastervit_jax.models.variants import any_res_sibling

if TYPE_CHECKING:
    from fastervit_jax.models.fastervit import FasterViT
    from fastervit_jax.models.stage import AttentionStage


def resized(model: FasterViT, resolution: int | tuple[int, int]) -> FasterViT:
    """A network for another size that shares the model's weights.

    Arguments and errors are those of `FasterViT.at_resolution`.
    """
    if model.deployed:
        raise ValueError(
            "Invalid call of at_resolution(): a deployed model works for one size. Call "
            "model.at_resolution(…).deploy()."
        )
    size: Any = resolution  # the configuration takes one side too
    config = dataclasses.replace(model.config, resolution=size, any_res=True)
    result = nnx.clone(model, variables=False)
    result.config = config
    for stage in ATTENTION_STAGES:
        _rebuild(result.stages[stage], config)
    # What `create_model` notes on a model.
    if hasattr(model, "name") and not model.config.any_res:
        result.name = any_res_sibling(model.name)
    if hasattr(model, "preprocessing"):
        result.preprocessing = dataclasses.replace(
            model.preprocessing, resolution=config.resolution
        )
    return result


def _rebuild(stage: AttentionStage, config: FasterViTConfig) -> None:
    """Makes a stage that of a network for another size, and drops unused weights."""
    index = stage.number - 1
    stage.any_res = config.any_res
    stage.resolution = config.resolution
    stage.geometry = config.geometry(index)
    hierarchical = stage.geometry.hierarchical
    if not config.has_carrier_tokenizer(index):
        stage.carrier_tokenizer = None
    for block in stage.blocks:
        if not hierarchical:
            block.carrier_layer = None
        if not hierarchical or not stage.geometry.square:
            block.carrier_position = None
    _check_weights(stage)


def _check_weights(stage: AttentionStage) -> None:
    """Raises ValueError where the stage has no weights for what its geometry asks for."""
    if not stage.geometry.hierarchical:
        return
    height, width = stage.resolution
    rows, columns = stage.geometry.window_grid
    explanation = (
        f"Invalid resolution {height}×{width}: stage {stage.number} gets {rows}×{columns} windows, "
        f"and the model has no weights for"
    )
    if any(block.carrier_layer is None for block in stage.blocks):
        raise ValueError(
            f"{explanation} their carrier tokens. It was built for a size with one window."
        )
    if stage.geometry.square and any(block.carrier_position is None for block in stage.blocks):
        raise ValueError(
            f"{explanation} the positions of their carrier tokens, which only square grids of "
            f"windows have. It was built for a grid that is not square."
        )
