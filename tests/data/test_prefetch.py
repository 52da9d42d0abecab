"""Handing batches to the device ahead of time."""

import jax
import numpy as np
import pytest

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import open_source, prefetch_to_device, train_batches
from tests.data.numbered import number_in


def test_transfers_run_ahead_and_keep_the_order():
    put = []
    batches = prefetch_to_device(iter(range(6)), lambda batch: put.append(batch) or -batch, ahead=2)
    assert next(batches) == 0 and put == [0, 1, 2]
    assert list(batches) == [-1, -2, -3, -4, -5] and put == list(range(6))
    assert list(prefetch_to_device([7], lambda batch: batch)) == [7]


def test_batches_in_shared_memory_outlive_their_arrays(numbered_folder):
    """JAX may alias a host array instead of copying it; the memory must then stay."""
    source = open_source(f"folder:{numbered_folder}")
    options = {"batch_size": 50, "seed": 0, "num_steps": 4}
    transform = TrainTransform(64, flip=0.0)
    expected = [batch["image"] for batch in train_batches(source, transform, **options)]
    with train_batches(source, transform, num_workers=1, **options) as loader:
        on_device = list(prefetch_to_device(loader, jax.device_put))
    for batch, image in zip(on_device, expected, strict=True):
        assert isinstance(batch["image"], jax.Array)
        np.testing.assert_array_equal(np.asarray(batch["image"]), image)
        assert number_in(np.asarray(batch["image"][0])) == number_in(image[0])


def test_ahead_must_be_positive():
    with pytest.raises(ValueError, match="Invalid ahead: expected at least 1"):
        next(prefetch_to_device([1], lambda batch: batch, ahead=0))
