"""Object detection: DINO on the maps of a FasterViT.

The task of the trainer is `training.detection`.
"""

from fastervit_jax.detection.config import DinoConfig
from fastervit_jax.detection.dino import DINO, Inputs, Outputs

__all__ = ["DINO", "DinoConfig", "Inputs", "Outputs"]
