"""Tensors in files that are not read yet."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: shape in the layout of the file.
        dtype: name of the dtype in the file, such as "float16".
        read: returns the tensor as float32 in the layout of the file. It may not be a copy.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def joined(names, limit: int = 12) -> str:
    """Joins the first `limit` names and adds the number of the others, for messages."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
