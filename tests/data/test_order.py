"""The order of images: permutations that depend on (seed, epoch, position) alone."""

import numpy as np
import pytest
from scipy import stats

from fastervit_jax.data.order import (
    check_seed,
    example_index,
    example_rng,
    replacement_index,
    steps_per_epoch,
)


def epoch_order(n, seed, epoch):
    return [example_index(n, seed=seed, epoch=epoch, position=p) for p in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 101, 1000])
def test_an_epoch_is_a_permutation(n):
    assert sorted(epoch_order(n, seed=5, epoch=2)) == list(range(n))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_example_is_as_likely_at_every_place():
    """χ² over seeds of what stands first, in the middle and last; and of neighboring pairs."""
    n, seeds, bins = 1000, 3000, 20
    drawn = {
        position: np.array(
            [example_index(n, seed=seed, epoch=0, position=position) for seed in range(seeds)]
        )
        for position in (0, 1, 500, 999)
    }
    for examples in drawn.values():
        assert stats.chisquare(np.bincount(examples * bins // n, minlength=bins)).pvalue > 1e-4
    apart = (drawn[1] - drawn[0]) % n
    assert stats.chisquare(np.bincount(apart * bins // n, minlength=bins)).pvalue > 1e-4


def test_the_order_of_running_experiments_stays():
    """A change here would give resumed runs other images than they were started with."""
    place = {"seed": 42, "epoch": 7, "position": 123_456}
    assert example_index(1_281_167, **place) == 908_773
    assert replacement_index(1_281_167, attempt=1, **place) == 1_006_004
    assert example_rng(**place).integers(2**31, size=3).tolist() == [
        2050929932,
        540328677,
        998013752,
    ]


def test_neighboring_streams_are_independent():
    """First draws over a grid of seeds, epochs and positions look uniform and uncorrelated."""
    draws = np.array(
        [
            example_rng(seed=seed, epoch=epoch, position=position).random(2)
            for seed in range(10)
            for epoch in range(10)
            for position in range(30)
        ]
    )
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.08


def test_steps_per_epoch():
    assert steps_per_epoch(1_281_167, 4096) == 312
    with pytest.raises(ValueError, match="Invalid batch_size=11: expected at most"):
        steps_per_epoch(10, 11)
    with pytest.raises(ValueError, match="expected a positive number"):
        steps_per_epoch(10, 0)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "1"])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(ValueError, match="Invalid seed: expected an integer"):
        check_seed(seed)
