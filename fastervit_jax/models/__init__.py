"""The network, and the table of its published variants."""

from fastervit_jax.models.config import FasterViTConfig, StageGeometry
from fastervit_jax.models.fastervit import FasterViT, abstract_model
from fastervit_jax.models.variants import VARIANTS, list_models, variant_config

__all__ = [
    "VARIANTS",
    "FasterViT",
    "FasterViTConfig",
    "StageGeometry",
    "abstract_model",
    "list_models",
    "variant_config",
]
