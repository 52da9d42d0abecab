"""The network, the table of its published variants, and families of networks by name."""

from fastervit_jax.models.config import FasterViTConfig, StageGeometry
from fastervit_jax.models.families import (
    Family,
    NetworkConfig,
    family_of,
    list_models,
    network_config,
    register,
)
from fastervit_jax.models.fastervit import FasterViT, abstract_model
from fastervit_jax.models.variants import VARIANTS, variant_config

__all__ = [
    "VARIANTS",
    "Family",
    "FasterViT",
    "FasterViTConfig",
    "NetworkConfig",
    "StageGeometry",
    "abstract_model",
    "family_of",
    "list_models",
    "network_config",
    "register",
    "variant_config",
]
