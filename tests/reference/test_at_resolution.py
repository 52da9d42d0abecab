"""`model.at_resolution` against the official any_res network built for that size, same weights."""

import functools

import pytest
import torch

from tests.reference.official import (
    DERIVED,
    images,
    largest_difference,
    official_model,
    official_outputs,
    our_model,
    our_outputs,
)

SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 1), num_classes=20)
LIMIT = 1e-5

SIZES = [(192, 320), (120, 120), (800, 1333)]
MORE_SIZES = [(224, 224), (448, 448), (224, 200), (320, 192), (161, 97), (112, 112), (576, 960)]
BEYOND = [(225, 240), (8, 120)]
MORE_BEYOND = [(225, 225), (33, 225), (449, 672)]


def sizes(quick: list, slow: list) -> list:
    """Test parameters with readable names."""
    return [
        pytest.param(size, id=f"{size[0]}x{size[1]}", marks=[pytest.mark.slow] * (size in slow))
        for size in quick + slow
    ]


@functools.cache
def square_models(name: str):
    """The official square network for 224 and ours, with the same weights."""
    theirs = official_model(name, **SMALL)
    return theirs, our_model(name, theirs, **SMALL)


def official_at(resolution, name: str) -> torch.nn.Module:
    """The official any_res network for a size, with the weights of the square one for 224."""
    theirs, _ = square_models(name)
    model = official_model(name.replace("_224", "_any_res"), resolution=resolution, **SMALL)
    weights = theirs.state_dict().items()
    weights = {key: value for key, value in weights if not key.endswith(DERIVED)}
    result = model.load_state_dict(weights, strict=False)
    assert all(key.endswith(DERIVED) for key in result.missing_keys)
    return model


def compare(resolution, record_property, *, built_for=None, name="faster_vit_3_224"):
    _, square = square_models(name)
    ours = square.at_resolution(resolution)
    batch = images(1, *resolution)
    their_logits, their_maps = official_outputs(official_at(built_for or resolution, name), batch)
    logits, maps = our_outputs(ours, batch)
    differences = [largest_difference(logits, their_logits)]
    differences += [largest_difference(a, b) for a, b in zip(maps, their_maps, strict=True)]
    text = " ".join(f"{difference:.1e}" for difference in differences)
    record_property("largest differences", text)
    print(f"logits and stages 1 to 4 differ by: {text}")
    assert max(differences) < LIMIT


@pytest.mark.parametrize("resolution", sizes(SIZES, slow=MORE_SIZES))
def test_sizes_the_official_network_takes(resolution, record_property):
    compare(resolution, record_property)


@pytest.mark.parametrize("resolution", sizes(BEYOND, slow=MORE_BEYOND))
def test_sizes_beyond_it(resolution, record_property):
    """There, ours is the official network built for sides rounded up to multiples of 32."""
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        official_outputs(official_at(resolution, "faster_vit_3_224"), images(1, *resolution))
    rounded = tuple(-(-side // 32) * 32 for side in resolution)
    compare(resolution, record_property, built_for=rounded)
