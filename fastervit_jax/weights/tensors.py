"""A tensor in a file that has not been read yet."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class StoredTensor(NamedTuple):
    """A tensor of a file: what it is, and how to read it.

    Attributes:
        shape: in the file's own layout.
        dtype: the file's name for its type, such as "float16".
        read: returns it as float32 in the file's own layout, perhaps without copying.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def joined(names, limit: int = 12) -> str:
    """Names for a message, the first few in full."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
