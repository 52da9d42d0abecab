"""A disk that is full, for the process that asks."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Makes writing larger files (bytes) fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
