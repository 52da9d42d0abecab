"""The order of the images and their random numbers, as functions of (seed, epoch, position).

An epoch has ⌊N/B⌋ steps and uses a new permutation of the N examples. Position p of an epoch is the
p-th image, counted over all global batches of the epoch. The results do not depend on the number of
hosts, workers or threads, or on where a run was resumed. Every function takes O(1) time.
"""

import functools

import numpy as np


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns ⌊N/B⌋, the number of complete global batches in an epoch.

    Raises:
        ValueError: a size is not positive, or the batch is larger than the data set.
    """
    if batch_size <= 0:
        raise ValueError(f"Invalid batch_size: expected a positive number, got {batch_size}.")
    if num_examples < batch_size:
        raise ValueError(
            f"Invalid batch_size={batch_size}: expected at most {num_examples}, the number of "
            f"examples in the data set. Use a smaller batch size (config.batch_size)."
        )
    return num_examples // batch_size


def check_seed(seed: int) -> None:
    """Raises ValueError unless the seed is an integer in [0, 2³²)."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"Invalid seed: expected an integer from 0 to 2**32 - 1, got {seed!r}.")


def example_index(num_examples: int, *, seed: int, epoch: int, position: int) -> int:
    """Returns the index of the example at `position` of `epoch`.

    Every epoch is a permutation of [0, N).
    """
    from grain.experimental import index_shuffle

    return index_shuffle(position, num_examples - 1, _epoch_seed(seed, epoch), 4)


@functools.lru_cache(maxsize=8)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def example_rng(*, seed: int, epoch: int, position: int) -> np.random.Generator:
    """Returns the random generator for distorting the image at `position` of `epoch`."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, position])))


def replacement_index(
    num_examples: int, *, seed: int, epoch: int, position: int, attempt: int
) -> int:
    """Returns the index of the example that replaces a damaged one.

    The index is uniform over all examples. `attempt` counts from 1.
    """
    stream = np.random.SeedSequence([seed, epoch, position, attempt])
    return int(np.random.Generator(np.random.PCG64(stream)).integers(num_examples))
