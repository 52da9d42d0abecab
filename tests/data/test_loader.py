"""The loader's order: once each, the same on any hosts and workers, from any step."""

import itertools

import numpy as np
import pytest

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import (
    EvalTransform,
    eval_batches,
    open_source,
    steps_per_epoch,
    train_batches,
)
from tests.data.numbered import NUM_IMAGES, number_in

BATCH_SIZE = 12
STEPS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE
TWO_EPOCHS = 2 * STEPS_PER_EPOCH


@pytest.fixture(scope="module")
def source(numbered_folder):
    return open_source(f"folder:{numbered_folder}")


class NoisyNumber:
    """A transform that keeps the image's number and shows its random draws."""

    def __call__(self, encoded, rng):
        plain = TrainTransform(4, flip=0.0)(encoded, np.random.default_rng(0))
        image = rng.integers(256, size=(4, 4, 3)).astype(np.uint8)
        image[0, 0] = plain[0, 0]
        return image


def load(source, *, workers=0, hosts=1, start=0, stop=TWO_EPOCHS, seed=3):
    """The global batches of all hosts, laid side by side."""
    loaders = [
        train_batches(
            source,
            NoisyNumber(),
            batch_size=BATCH_SIZE,
            seed=seed,
            start_step=start,
            num_steps=stop,
            num_workers=workers,
            host_index=host,
            host_count=hosts,
        )
        for host in range(hosts)
    ]
    steps = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*loaders, strict=True)
    ]
    assert len(steps) == stop - start
    return steps


AT_ONCE = [(0, 2), (1, 1), (7, 3), (8, 1), (15, 2)]
"""Steps at which a run is taken up, and hosts, that are tested at every change."""


@pytest.fixture(scope="module")
def uninterrupted(source):
    return load(source)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys() == {"image", "label"}
        for key in batch:
            assert batch[key].dtype == other[key].dtype
            np.testing.assert_array_equal(batch[key], other[key])


def test_shapes_and_types(uninterrupted):
    batch = uninterrupted[0]
    assert batch["image"].shape == (BATCH_SIZE, 4, 4, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (BATCH_SIZE,) and batch["label"].dtype == np.int32


def test_labels_belong_to_their_images(source, uninterrupted):
    labels = {number: source[number].label for number in range(len(source))}
    for batch in uninterrupted:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            assert labels[number_in(image)] == label


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_an_epoch_shows_different_images_over_all_hosts(source, hosts):
    assert steps_per_epoch(len(source), BATCH_SIZE) == STEPS_PER_EPOCH == 8
    batches = load(source, hosts=hosts)
    epochs = [batches[:STEPS_PER_EPOCH], batches[STEPS_PER_EPOCH:]]
    seen = [[number_in(image) for batch in epoch for image in batch["image"]] for epoch in epochs]
    for numbers in seen:
        assert len(numbers) == len(set(numbers)) == STEPS_PER_EPOCH * BATCH_SIZE
    assert seen[0] != seen[1]


def test_distortions_differ_between_epochs_and_positions(uninterrupted):
    noise = np.concatenate([batch["image"][:, 1:] for batch in uninterrupted])
    assert len({image.tobytes() for image in noise}) == len(noise)


def test_seeds_differ(source, uninterrupted):
    other = load(source, stop=1, seed=4)
    assert not np.array_equal(other[0]["image"], uninterrupted[0]["image"])


@pytest.mark.parametrize(
    ("start", "hosts"),
    [
        pytest.param(start, hosts, marks=[pytest.mark.slow] * ((start, hosts) not in AT_ONCE))
        for start, hosts in itertools.product([0, 1, 7, 8, 13, 15], [1, 2, 3])
    ],
)
def test_restart_without_workers(source, uninterrupted, start, hosts):
    assert_same(load(source, start=start, hosts=hosts), uninterrupted[start:])


@pytest.mark.parametrize(("workers", "hosts", "start"), [(1, 2, 0), (3, 1, 5)])
def test_restart_with_workers(source, uninterrupted, workers, hosts, start):
    assert_same(load(source, workers=workers, hosts=hosts, start=start), uninterrupted[start:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "hosts", "start"), list(itertools.product([1, 2, 3], [1, 2, 3], [0, 5, 8]))
)
def test_every_restart_with_workers(source, uninterrupted, workers, hosts, start):
    assert_same(load(source, workers=workers, hosts=hosts, start=start), uninterrupted[start:])


def test_a_far_step_is_reached_at_once(source, uninterrupted):
    """Step 10⁹ costs what step 0 costs: nothing is counted up."""
    far = load(source, start=10**9, stop=10**9 + 1)
    assert not np.array_equal(far[0]["image"], uninterrupted[0]["image"])


def test_no_steps_are_an_empty_loader(source):
    assert load(source, start=5, stop=5) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch_size": 102}, "Invalid batch_size=102: expected at most"),
        ({"batch_size": 10, "host_count": 3}, "positive multiple of the 3 hosts, got 10"),
        ({"host_index": 1}, r"Invalid host_index: expected 0 to 0, got 1"),
        ({"seed": -1}, "Invalid seed"),
        ({"num_workers": -1}, "Invalid num_workers"),
        ({"start_step": 5, "num_steps": 4}, "got start=5 and stop=4"),
        ({"max_damaged_share": 1.5}, "Invalid max_damaged_share"),
    ],
    ids=str,
)
def test_wrong_arguments_are_explained(source, changed, says):
    arguments = {"batch_size": 12, "seed": 0, "num_steps": 1} | changed
    with pytest.raises(ValueError, match=says):
        train_batches(source, TrainTransform(4), **arguments)


@pytest.mark.parametrize(
    ("hosts", "batch_size", "workers"),
    [(1, 12, 0), (3, 12, 0), (3, 300, 0), (1, 101, 0), (2, 8, 2)],
)
def test_evaluation_sees_every_image_once(source, hosts, batch_size, workers):
    transform = EvalTransform((4, 5), 1.0, "squash")
    loaders = [
        list(
            eval_batches(
                source,
                transform,
                batch_size=batch_size,
                num_workers=workers,
                host_index=host,
                host_count=hosts,
            )
        )
        for host in range(hosts)
    ]
    assert {len(batches) for batches in loaders} == {-(-NUM_IMAGES // batch_size)}
    indices = []
    for batch in itertools.chain(*loaders):
        assert batch["image"].shape == (batch_size // hosts, 4, 5, 3)
        assert batch["image"].dtype == np.uint8 and batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["mask"], batch["index"] >= 0)
        for row in np.flatnonzero(batch["mask"]):
            example = source[int(batch["index"][row])]
            assert batch["label"][row] == example.label
            np.testing.assert_array_equal(batch["image"][row], transform(example.encoded))
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
        indices += batch["index"][batch["mask"]].tolist()
    assert sorted(indices) == list(range(NUM_IMAGES))


def test_one_host_sees_evaluation_in_order(source):
    batches = eval_batches(source, EvalTransform(4, 1.0, "center"), batch_size=10)
    indices = np.concatenate([batch["index"] for batch in batches])
    assert indices[:NUM_IMAGES].tolist() == list(range(NUM_IMAGES))
