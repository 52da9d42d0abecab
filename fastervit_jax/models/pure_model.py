"""A model as a pure function of its arrays, which are kept in flat dictionaries by dotted name."""

from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

Arrays = dict[str, jax.Array]
"""Arrays by dotted name, such as `stages.2.blocks.0.window_layer.mlp.expand.kernel`."""


def flatten(state: nnx.State) -> Arrays:
    """The arrays of an NNX state by dotted name."""
    return {
        ".".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def unflatten(arrays: Arrays) -> nnx.State:
    """Inverse of `flatten`, with bare arrays for variables, for `nnx.merge` and `nnx.update`."""
    return nnx.from_flat_state(
        [
            (tuple(int(part) if part.isdigit() else part for part in name.split(".")), array)
            for name, array in arrays.items()
        ]
    )


def arrays_of(model: nnx.Module) -> tuple[Arrays, Arrays]:
    """A model's parameters and batch-norm statistics, by dotted name."""
    return flatten(nnx.state(model, nnx.Param)), flatten(nnx.state(model, nnx.BatchStat))


class PureModel:
    """The structure of a model, split off once; its arrays come as arguments.

    Args:
        model: may be abstract (`nnx.eval_shape`); it is left in inference mode.
        frozen: modules, such as `stem` or `stages.0`, that work as in inference also in training:
            their batch norms keep their statistics, and they drop nothing.

    Attributes:
        looped: beginnings of the names of arrays that belong to blocks run as a loop.
    """

    def __init__(self, model: nnx.Module, frozen: Iterable[str] = ()):
        self.looped = tuple(
            ".".join(map(str, (*path, "blocks", block, "")))
            for path, module in nnx.iter_modules(model)
            for block in range(getattr(module, "looped", 0))
        )
        model.train()
        for name in frozen:
            _module(model, name).eval()
        self._training = nnx.graphdef(model)
        model.eval()
        self._inference = nnx.graphdef(model)

    def infer(
        self, params: Arrays, statistics: Arrays, images: Any, *, method: str = "__call__"
    ) -> Any:
        """Outputs for normalized images, in inference mode: logits of a classifier.

        `method` names a method of the model to call instead of the model itself.
        """
        model = nnx.merge(self._inference, unflatten(params), unflatten(statistics))
        return getattr(model, method)(images)

    def train(
        self, params: Arrays, statistics: Arrays, images: Any, key: jax.Array
    ) -> tuple[Any, Arrays]:
        """Outputs in training mode, and the updated statistics.

        Args:
            params: parameters by dotted name.
            statistics: batch-norm statistics before this batch.
            images: what the model takes: for a classifier, normalized images [N, H, W, channels].
            key: random key for drop path and dropout.
        """
        model = nnx.merge(self._training, unflatten(params), unflatten(statistics))
        outputs = model(images, rngs=nnx.Rngs(dropout=key))
        return outputs, flatten(nnx.state(model, nnx.BatchStat))


def _module(model: Any, name: str) -> nnx.Module:
    for part in name.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model
