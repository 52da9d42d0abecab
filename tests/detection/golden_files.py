"""The official DINO's outputs on known weights and images, and our network with those weights."""

import json
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fastervit_jax.detection.config import DinoConfig
from fastervit_jax.detection.dino import FAMILY, Inputs
from fastervit_jax.models import FasterViTConfig
from fastervit_jax.models.pure_model import arrays_of, unflatten
from fastervit_jax.weights.names import copies, from_torch_layout, torch_name

GOLDEN = Path(__file__).parent / "golden"
BACKBONE = FasterViTConfig(
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 2, 4),
    window_size=(7, 7, 14, 7),
    dim=16,
    in_dim=8,
    layer_scale=1e-5,
    hat=(False,) * 4,
    any_res=True,
    pad_all_stages=True,
    position_by_tokens=True,
    num_classes=0,
)


def golden(levels: int) -> tuple[dict, dict[str, np.ndarray]]:
    """What the JSON says, and the arrays."""
    path = GOLDEN / f"dino_tiny_{levels}scale"
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    return json.loads(path.with_suffix(".json").read_text()), arrays


def official_tensor(recipe: dict) -> np.ndarray:
    """A tensor of the official model, made as its JSON says, float64."""
    seed = zlib.crc32(recipe["seed"].encode())
    draws = np.random.default_rng(seed).standard_normal(recipe["shape"])
    if recipe["absolute"]:
        draws = np.abs(draws)
    return recipe["mean"] + recipe["scale"] * draws


def config_of(about: dict) -> DinoConfig:
    """Our options for the network that a JSON describes."""
    options = about["config"]
    names = ("levels", "encoder_layers", "decoder_layers", "queries", "feedforward", "heads")
    return DinoConfig(
        backbone=BACKBONE,
        num_classes=options["classes"],
        hidden=options["hidden"],
        **{name: options[name] for name in names},
    )


def network(about: dict, dtype=jnp.float32):
    """Our network with the official weights, in inference mode; all tensors are used."""
    model = FAMILY.abstract(config_of(about), dtype=dtype)
    left = set(about["weights"])
    filled = {}
    for part in arrays_of(model):
        for name, array in part.items():
            theirs = torch_name(name, FAMILY.torch_modules, FAMILY.torch_backbone)
            value = from_torch_layout(official_tensor(about["weights"][theirs]), name)
            assert value.shape == array.shape, (name, value.shape, array.shape)
            filled[name] = jnp.asarray(value, jnp.float32)
            left -= {theirs, *copies(theirs, about["config"]["decoder_layers"])}
    assert not left, left
    nnx.update(model, unflatten(filled))
    model.eval()
    return model


def inputs() -> Inputs:
    """The two photographs, padded to one size."""
    _, arrays = golden(4)
    images = [arrays["image_0"], arrays["image_1"]]
    sizes = np.array([image.shape[:2] for image in images])
    batch = np.zeros((2, *sizes.max(axis=0), 3), np.float32)
    for row, image in enumerate(images):
        batch[row, : image.shape[0], : image.shape[1]] = image
    return Inputs(jnp.asarray(batch), jnp.asarray(sizes, jnp.int32))
