"""A small network and photographs that it knows about half of."""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.data import EvalTransform
from fastervit_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from fastervit_jax.models import FasterViT
from fastervit_jax.weights.loading import describe
from tests.data.photographs import encode
from tests.evaluation.photo_folders import pieces
from tests.quick_compilation import quick_jit
from tests.small.network import small_model

NAME = "faster_vit_0_224"
NAMES = tuple(f"class {letter}" for letter in "ABCDEFGHIJKL")


def small_task(
    root: Path, images: int, classes: tuple[str, ...] = NAMES, file_name: str = "{:03d}.JPEG"
) -> tuple[FasterViT, Path]:
    """Makes a network, and class folders below `root` filed by its answers to another crop.

    Random networks give nearly every photograph the same answer, so the head is shifted by the mean
    logits and scaled.
    """
    model = small_model(num_classes=len(classes))
    files = [encode(piece, "JPEG", quality=90) for piece in itertools.islice(pieces(), images)]
    view = EvalTransform(model.config.resolution, 1.0, "squash")
    batch = (np.stack([view(file) for file in files]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    graph, state = nnx.split(model)
    forward = quick_jit(lambda state, batch: nnx.merge(graph, state)(batch))
    logits = np.asarray(forward(state, jnp.asarray(batch, jnp.float32)))
    mean, scale = logits.mean(axis=0), 2 / (logits - logits.mean(axis=0)).std()
    model.head.kernel[...] *= scale
    model.head.bias[...] = (model.head.bias[...] - mean) * scale
    answers = (logits - mean).argmax(axis=1)
    for number, (file, answer) in enumerate(zip(files, answers, strict=True)):
        path = root / classes[answer] / file_name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    describe(model, NAME)
    model.class_names = tuple(classes)
    return model, root
