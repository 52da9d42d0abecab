"""Semantic segmentation: UperNet on the maps of a FasterViT.

The data sets are in `data.sources.masks`, the training transforms in `augmentation.aligned`, the
task of the trainer in `training.segmentation`.
"""

from fastervit_jax.segmentation.config import UperNetConfig
from fastervit_jax.segmentation.upernet import UPERNET, UperNet

__all__ = ["UPERNET", "UperNet", "UperNetConfig"]
