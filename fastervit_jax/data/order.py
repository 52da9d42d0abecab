"""Which image stands where, and with which random numbers: functions of (seed, epoch, position).

An epoch is ⌊N/B⌋ steps over a fresh permutation of the N examples; position p of an epoch is the
p-th image of its global batches laid end to end. Nothing here depends on the number of hosts,
workers or threads, or on where a run was resumed, and every answer costs O(1).
"""

import functools

import numpy as np


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """⌊N/B⌋, the whole global batches in an epoch.

    Raises:
      ValueError: a size is not positive, or one batch needs more examples than there are.
    """
    if batch_size <= 0:
        raise ValueError(f"batch_size must be positive, not {batch_size}.")
    if num_examples < batch_size:
        raise ValueError(
            f"A batch of {batch_size} images needs at least as many examples, but the data set "
            f"has {num_examples}: lower the batch size."
        )
    return num_examples // batch_size


def check_seed(seed: int) -> None:
    """Raises ValueError unless the seed is an integer in [0, 2³²)."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, not {seed!r}.")


def example_index(num_examples: int, *, seed: int, epoch: int, position: int) -> int:
    """The example that stands at `position` of `epoch`: a permutation of [0, N) in each epoch."""
    from grain.experimental import index_shuffle

    return index_shuffle(position, num_examples - 1, _epoch_seed(seed, epoch), 4)


@functools.lru_cache(maxsize=8)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def example_rng(*, seed: int, epoch: int, position: int) -> np.random.Generator:
    """The stream that decides how the image at `position` of `epoch` is distorted."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, position])))


def replacement_index(
    num_examples: int, *, seed: int, epoch: int, position: int, attempt: int
) -> int:
    """The example that takes a damaged one's place: uniform over all, attempt counting from 1."""
    stream = np.random.SeedSequence([seed, epoch, position, attempt])
    return int(np.random.Generator(np.random.PCG64(stream)).integers(num_examples))
