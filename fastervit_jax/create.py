"""`create_model`: one line to a network."""

import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models import FasterViT, variant_config


def create_model(
    name: str,
    *,
    weights=None,
    pretrained: bool = False,
    num_classes: int = 1000,
    resolution=None,
    window_size=None,
    ct_size: int | None = None,
    hat=None,
    dtype=jnp.float32,
    rngs: nnx.Rngs | None = None,
    **overrides,
) -> FasterViT:
    """Builds a FasterViT, ready for inference.

    Args:
        name: an official model name (`list_models()`).
        weights: a converted directory, or an official torch file; None means new weights.
        pretrained: fetch the published weights.
        num_classes: classes of the head; 0 means no head.
        resolution: image size in pixels, one side or (height, width) for `any_res` models.
        window_size: side of the attention windows of the four stages.
        ct_size: side of each window's square of carrier tokens.
        hat: for each stage, whether its attention is hierarchical.
        dtype: type of the computation, float32 or bfloat16; parameters are float32 in both.
        rngs: where new weights come from; default `nnx.Rngs(0)`.
        **overrides: further options of `FasterViTConfig`.

    Returns:
        The model in evaluation mode; `model.train()` prepares it for training.

    Raises:
        ValueError: an unknown name or option, or a network that cannot be built.
    """
    given = dict(resolution=resolution, window_size=window_size, ct_size=ct_size, hat=hat)
    overrides.update({key: value for key, value in given.items() if value is not None})
    config = variant_config(name, num_classes=num_classes, **overrides)
    if weights is not None or pretrained:
        raise NotImplementedError("weights are the next commit")
    model = FasterViT(config, dtype=dtype, rngs=nnx.Rngs(0) if rngs is None else rngs)
    model.eval()
    return model
