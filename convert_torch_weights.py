"""Converts official FasterViT weights to ours, and ours to the official format.

python convert_torch_weights.py --model=NAME --checkpoint=FILE.pth.tar --output=DIR
python convert_torch_weights.py --model=NAME --weights=DIR --to_torch=FILE.pth.tar
"""

from absl import flags

from fastervit_jax.commands import flags as cli

_MODEL = flags.DEFINE_string("model", None, "Official model name, such as faster_vit_0_224.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The torch or safetensors file to convert.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory to write.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "What to convert back: a converted directory, or train.py's work directory."
)
_TO_TORCH = flags.DEFINE_string("to_torch", None, "The torch file to write.")
_EMA = flags.DEFINE_bool("ema", False, "Take the moving average of the weights.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what stands at the output.")
_model_options = cli.define_model_flags()


def main(_) -> None:
    """Converts, in the direction that the flags say."""
    from fastervit_jax.weights.convert import convert_checkpoint, export_to_torch

    options = _model_options()
    inwards = {"--checkpoint": _CHECKPOINT.value, "--output": _OUTPUT.value}
    outwards = {"--weights": _WEIGHTS.value, "--to_torch": _TO_TORCH.value}
    if all(inwards.values()) and not any(outwards.values()):
        if not _MODEL.value:
            raise ValueError("--model is missing: an official file does not say which model it is.")
        convert_checkpoint(
            _MODEL.value,
            _CHECKPOINT.value,
            _OUTPUT.value,
            ema=_EMA.value,
            overwrite=_OVERWRITE.value,
            progress=True,
            **options,
        )
    elif all(outwards.values()) and not any(inwards.values()):
        if options:
            raise ValueError(f"--{min(options)} has no meaning here: weights are written as saved.")
        export_to_torch(
            _MODEL.value,
            _WEIGHTS.value,
            _TO_TORCH.value,
            ema=_EMA.value,
            overwrite=_OVERWRITE.value,
            progress=True,
        )
    else:
        raise ValueError(
            "Give --checkpoint and --output to convert an official file, or --weights and "
            "--to_torch to write one."
        )


if __name__ == "__main__":
    cli.run(main)
