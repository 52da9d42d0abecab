"""`create_model`: one line to a network."""

import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models import FasterViT, variant_config
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
    dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides: Any,
) -> FasterViT:
    """Builds a FasterViT, ready for inference.

    Where weights are given, an option that is left out is as they were saved, and one that is given
    may differ: another `num_classes` starts a new head, another geometry the parts that only some
    geometries have. A warning then says what is new and what was left out.

    Args:
        name: an official model name (`list_models()`).
        weights: a converted directory, an official torch or safetensors file, or a work directory
            of train.py; None means new weights.
        pretrained: fetch the published weights, converted once and then cached.
        num_classes: classes of the head; 0 means no head. By default as many as the weights have,
            for new weights and official files 1000.
        resolution: image size in pixels, one side or (height, width) for `any_res` models.
        window_size: side of the attention windows of the four stages.
        ct_size: side of each window's square of carrier tokens.
        hat: for each stage, whether its attention is hierarchical.
        dtype: type of the computation, float32 or bfloat16; parameters are float32 in both.
        rngs: where new weights come from; default `nnx.Rngs(0)`.
        **overrides: further options of `FasterViTConfig`.

    Returns:
        The model in evaluation mode; `model.train()` prepares it for training. Its attributes
        `name`, `class_names` (or None) and `preprocessing` say what it is.

    Raises:
        ValueError: an unknown name or option, a network that cannot be built, or weights that are
            damaged, another model's, or do not fit.
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
            raise ValueError("Give weights or pretrained=True, not both.")
        from fastervit_jax.weights.hub import pretrained_directory

        weights = pretrained_directory(name)
    if weights is None:
        config = variant_config(name, **overrides)
        model = FasterViT(config, dtype=dtype, rngs=nnx.Rngs(0) if rngs is None else rngs)
        model.eval()
        describe(model, name)
        return model
    try:
        loaded = load_model(name, open_weights(weights), overrides, dtype=dtype, rngs=rngs)
    except DamagedWeightsError as error:
        if not pretrained:
            raise
        raise DamagedWeightsError(
            f"{error} It is a cached copy: delete {weights}, and it is fetched again."
        ) from None
    if loaded.lines:
        warnings.warn("\n".join([str(weights), *loaded.lines]), stacklevel=2)
    return loaded.model
