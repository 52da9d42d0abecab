"""Input data: sources (folders, TFDS) → decoding → order → loader.

Importing this package does not import TensorFlow, TFDS or Grain. They are imported on first use.
"""

from fastervit_jax.data.images import DamagedImageError, Decoding, EvalTransform, decode_eval
from fastervit_jax.data.loader import (
    DamageReport,
    TooMuchDamageError,
    TrainLoader,
    eval_batches,
    example_batches,
    prefetch_to_device,
    train_batches,
)
from fastervit_jax.data.order import steps_per_epoch
from fastervit_jax.data.sources import Example, Source, check_same_classes, open_source

__all__ = [
    "DamageReport",
    "DamagedImageError",
    "Decoding",
    "EvalTransform",
    "Example",
    "Source",
    "TooMuchDamageError",
    "TrainLoader",
    "check_same_classes",
    "decode_eval",
    "eval_batches",
    "example_batches",
    "open_source",
    "prefetch_to_device",
    "steps_per_epoch",
    "train_batches",
]
