"""FasterViT: Fast Vision Transformers with Hierarchical Attention, in JAX and Flax NNX."""

from fastervit_jax.create import create_model
from fastervit_jax.models import FasterViT, FasterViTConfig, list_models
from fastervit_jax.prediction import predict
from fastervit_jax.version import __version__
from fastervit_jax.weights.loading import save_model

__all__ = [
    "FasterViT",
    "FasterViTConfig",
    "__version__",
    "create_model",
    "list_models",
    "predict",
    "save_model",
]
