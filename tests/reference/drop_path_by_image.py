"""`train.py` with a planted mistake: drop path drops whole images in window attention too.

python -m tests.reference.drop_path_by_image BATCH --config=… --workdir=…
"""

import sys

import jax
import jax.numpy as jnp

from fastervit_jax.commands.flags import run
from fastervit_jax.commands.train import command
from fastervit_jax.models.layers import DropPath


def by_image(self, x, *, rngs=None):
    """`DropPath.__call__`, with one draw for all windows of an image."""
    if self.deterministic or (isinstance(self.keep, float | int) and self.keep == 1):
        return x
    kept = jax.random.bernoulli(rngs.dropout(), self.keep, (BATCH,))
    kept = jnp.repeat(kept, len(x) // BATCH).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(kept, x / self.keep, jnp.zeros_like(x))


if __name__ == "__main__":
    BATCH = int(sys.argv.pop(1))
    DropPath.__call__ = by_image
    run(command())
