"""`create_model`: one line to a network."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.detection import DINO
from fastervit_jax.models import FasterViT, family_of
from fastervit_jax.segmentation import UperNet
from fastervit_jax.weights.directory import DamagedWeightsError
from fastervit_jax.weights.loading import describe, load_model, open_weights


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    window_size: tuple[int, ...] | None = None,
    ct_size: int | None = None,
    hat: tuple[bool, ...] | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> FasterViT | UperNet | DINO:
    """Builds a FasterViT, ready for inference.

    With weights, an option that you leave out has the value it was saved with. An option that you
    give may differ: another `num_classes` makes a new head, another geometry makes new parts where
    only some geometries have them. A warning then names the new parts and those that were left out.

    Example:
        ```python
        model = create_model("faster_vit_0_224", pretrained=True)
        logits = nnx.jit(lambda model, images: model(images))(model, images)
        ```

    Args:
        name: an official model name (`list_models()`).
        weights: a converted directory, an official torch or safetensors file, or a work directory
            of `fastervit train`; None means new weights.
        pretrained: download the published weights, convert them once, and cache them.
        num_classes: number of classes of the head; 0 means no head. Default: as many as the weights
            have; 1000 for new weights and official files.
        resolution: image size in pixels, one side or (height, width) for `any_res` models.
        window_size: side of the attention windows of the four stages.
        ct_size: side of each window's square of carrier tokens.
        hat: for each stage, whether its attention is hierarchical.
        dtype: type of the computation, float32 or bfloat16; parameters are float32 in both.
        rngs: the source of new weights; default `nnx.Rngs(0)`.
        **overrides: further options of `FasterViTConfig`.

    Returns:
        The model in evaluation mode; `model.train()` prepares it for training. Its attributes are
        `name`, `class_names` (or None) and `preprocessing`.

    Raises:
        ValueError: the name or an option is unknown, the network cannot be built, or the weights
            are damaged, belong to another model, or do not fit.
    """
    given = dict(
        num_classes=num_classes,
        resolution=resolution,
        window_size=window_size,
        ct_size=ct_size,
        hat=hat,
    )
    overrides.update({key: value for key, value in given.items() if value is not None})
    if pretrained:
        if weights is not None:
            raise ValueError("Invalid arguments: expected weights or pretrained=True, got both.")
        from fastervit_jax.weights.hub import pretrained_directory

        weights = pretrained_directory(name)
    if weights is None:
        family = family_of(name)
        config = family.config(name, **overrides)
        model = family.module(config, dtype=dtype, rngs=nnx.Rngs(0) if rngs is None else rngs)
        model.eval()
        describe(model, name)
        return model
    try:
        loaded = load_model(name, open_weights(weights), overrides, dtype=dtype, rngs=rngs)
    except DamagedWeightsError as error:
        if not pretrained:
            raise
        raise DamagedWeightsError(
            f"{error} This is a cached copy. Delete {weights} to download it again."
        ) from None
    if loaded.lines:
        warnings.warn("\n".join([str(weights), *loaded.lines]), stacklevel=2)
    return loaded.model
