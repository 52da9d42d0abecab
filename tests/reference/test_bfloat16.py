"""bfloat16 computation against the official network in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.reference.official import (
    images,
    largest_difference,
    official_model,
    official_outputs,
    our_model,
    our_outputs,
)

LIMIT = 0.02
SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 2, 1), num_classes=20)
CASES = {
    "no layer scale": ("faster_vit_0_224", SMALL),
    "wide any_res": ("faster_vit_3_any_res", SMALL | dict(resolution=(192, 320))),
}


def compare(name: str, options: dict, batch: int, record_property) -> None:
    theirs = official_model(name, **options)
    ours = our_model(name, theirs, dtype=jnp.bfloat16, **options)
    batch_of_images = images(batch, *ours.config.resolution)
    expected, _ = official_outputs(theirs, batch_of_images)
    logits, maps = our_outputs(ours, batch_of_images)

    assert logits.dtype == jnp.float32
    assert {x.dtype for x in maps} == {jnp.dtype(jnp.bfloat16)}
    difference = largest_difference(logits, expected)
    record_property("largest difference", f"{difference:.4f}")
    print(f"largest difference {difference:.2%} of the largest logit")
    assert difference < LIMIT

    # The same best class, unless others are as good but for bfloat16's error.
    chosen = np.take_along_axis(expected, np.argmax(logits, axis=-1)[:, None], axis=-1)[:, 0]
    assert (expected.max(axis=-1) - chosen <= LIMIT * np.abs(expected).max()).all()


@pytest.mark.parametrize("case", CASES)
def test_small(case, record_property):
    name, options = CASES[case]
    compare(name, options, 8, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_vit_0_224", "faster_vit_3_224", "faster_vit_4_21k_224"])
def test_real(name, record_property):
    compare(name, {}, 4, record_property)
