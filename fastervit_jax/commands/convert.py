"""Converts official FasterViT weights to ours, and ours to the official format.

fastervit convert --model=NAME --checkpoint=FILE.pth.tar --output=DIR
fastervit convert --model=NAME --weights=DIR --to_torch=FILE.pth.tar
"""

from collections.abc import Callable
from typing import Any

from absl import flags

from fastervit_jax.commands.flags import define_model_flags
from fastervit_jax.weights.convert import convert_checkpoint, export_to_torch


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit convert`, and returns what runs it."""
    model: Any = flags.DEFINE_string(
        "model", None, "Official model name, such as faster_vit_0_224."
    )
    checkpoint: Any = flags.DEFINE_string(
        "checkpoint", None, "Torch or safetensors file to convert."
    )
    output: Any = flags.DEFINE_string("output", None, "Directory to write.")
    weights: Any = flags.DEFINE_string(
        "weights",
        None,
        "What to convert back: a converted directory or a work directory.",
    )
    to_torch: Any = flags.DEFINE_string("to_torch", None, "Torch file to write.")
    ema = flags.DEFINE_bool("ema", False, "Convert the EMA of the weights.")
    overwrite = flags.DEFINE_bool("overwrite", False, "Replace an existing output.")
    model_options = define_model_flags()

    def main(_) -> None:
        options = model_options()
        inwards = {"--checkpoint": checkpoint.value, "--output": output.value}
        outwards = {"--weights": weights.value, "--to_torch": to_torch.value}
        if all(inwards.values()) and not any(outwards.values()):
            if not model.value:
                raise ValueError(
                    "Missing --model: an official file does not contain the model's name."
                )
            convert_checkpoint(
                model.value,
                checkpoint.value,
                output.value,
                ema=ema.value,
                overwrite=overwrite.value,
                progress=True,
                **options,
            )
        elif all(outwards.values()) and not any(inwards.values()):
            if options:
                raise ValueError(
                    f"Invalid --{min(options)} with --to_torch: weights are written as saved."
                )
            export_to_torch(
                model.value,
                weights.value,
                to_torch.value,
                ema=ema.value,
                overwrite=overwrite.value,
                progress=True,
            )
        else:
            raise ValueError(
                "Invalid flags: set --checkpoint and --output to convert an official file, or "
                "--weights and --to_torch to write one."
            )

    return main
