"""Data: sources (TFDS, folders) → host transforms → the loader.

Importing this loads neither TensorFlow nor TFDS nor Grain; they are loaded where they are used.
"""

from fastervit_jax.data.batches import eval_batches, train_batches
from fastervit_jax.data.images import DamagedImageError, EvalTransform, decode_eval
from fastervit_jax.data.order import steps_per_epoch
from fastervit_jax.data.sources import Example, Source, open_source
from fastervit_jax.data.train_transform import TrainTransform

__all__ = [
    "DamagedImageError",
    "EvalTransform",
    "Example",
    "Source",
    "TrainTransform",
    "decode_eval",
    "eval_batches",
    "open_source",
    "steps_per_epoch",
    "train_batches",
]
