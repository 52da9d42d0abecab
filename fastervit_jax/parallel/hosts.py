"""What the processes of a run tell each other beside the arrays of a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_processes(count: int) -> int:
    """The sum of every process's count. All must call this."""
    if jax.process_count() == 1:
        return count
    return int(np.sum(multihost_utils.process_allgather(np.array(count))))


@contextmanager
def failures_of_peers() -> Iterator[None]:
    """Says in a sentence that another process has gone, where JAX notices it in a collective.

    Raises:
        OSError: in place of JAX's own error, in a run of several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        raise OSError(
            f"Process {jax.process_index()} of {jax.process_count()} stops, since the processes "
            f"could not go on together ({reason}): has one of them ended? Start all of them again; "
            f"the run goes on from its newest checkpoint."
        ) from error
