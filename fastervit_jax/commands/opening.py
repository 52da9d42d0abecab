"""The flags with which the commands of this package name a model, and opening it."""

import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from fastervit_jax.commands import flags as cli
from fastervit_jax.models import FasterViT


def define_weights_flags() -> Callable[[], FasterViT]:
    """Defines --model, --weights and the flags that change a named network.

    Returns:
        A function that opens the model once the flags are parsed.
    """
    model = flags.DEFINE_string(
        "model", None, "Model name; may be left out where the weights say what they are."
    )
    weights = flags.DEFINE_string(
        "weights",
        None,
        "A converted directory, an official torch file, or a work directory of train.py; by "
        "default the published weights of --model.",
    )
    options = cli.define_model_flags()

    def open_model() -> FasterViT:
        from fastervit_jax.weights.loading import load_model, open_weights

        path: Any = weights.value
        if path is None:
            if model.value is None:
                raise ValueError("--model is missing, or --weights that say what they are.")
            from fastervit_jax.weights.hub import pretrained_directory

            path = pretrained_directory(model.value, say=_say)
        loaded = load_model(model.value, open_weights(path), options(), progress=True)
        for line in loaded.lines:
            _say(line)
        return loaded.model

    return open_model


def _say(line: str) -> None:
    print(line, file=sys.stderr)
