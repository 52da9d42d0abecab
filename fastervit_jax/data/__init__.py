"""Data: sources (TFDS, folders) → host transforms → the loader.

Importing this loads neither TensorFlow nor TFDS nor Grain; they are loaded where they are used.
"""

from fastervit_jax.data.loader import TrainLoader, eval_batches, train_batches
from fastervit_jax.data.damage import DamageReport, TooMuchDamageError
from fastervit_jax.data.device import prefetch_to_device
from fastervit_jax.data.images import DamagedImageError, EvalTransform, decode_eval
from fastervit_jax.data.order import steps_per_epoch
from fastervit_jax.data.sources.source import Example, Source, check_same_classes, open_source
from fastervit_jax.augmentation.host import TrainTransform

__all__ = [
    "DamageReport",
    "DamagedImageError",
    "EvalTransform",
    "Example",
    "Source",
    "TooMuchDamageError",
    "TrainLoader",
    "TrainTransform",
    "check_same_classes",
    "decode_eval",
    "eval_batches",
    "open_source",
    "prefetch_to_device",
    "steps_per_epoch",
    "train_batches",
]
