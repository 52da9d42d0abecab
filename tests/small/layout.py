"""A network arranged for another platform than the one it runs on."""

import contextlib
from unittest import mock

from fastervit_jax.models import layouts


@contextlib.contextmanager
def laid_out_for(platform: str):
    """Traces inside the block take the branches of this platform: cpu, cuda or tpu.

    Functions that were traced before keep what they took: trace a new one.
    """

    def choose(*args, default, **branches):
        return branches.get(platform, default)(*args)

    with mock.patch.object(layouts, "by_platform", choose):
        yield
