"""Converts official FasterViT weights to ours, and ours to the official format.

python convert_torch_weights.py --model=NAME --checkpoint=FILE.pth.tar --output=DIR
python convert_torch_weights.py --model=NAME --weights=DIR --to_torch=FILE.pth.tar
"""

from absl import flags

from fastervit_jax import cli

_MODEL = flags.DEFINE_string("model", None, "Official model name, such as faster_vit_0_224.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The torch or safetensors file to convert.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory to write.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "What to convert back: a converted directory, or train.py's work directory."
)
_TO_TORCH = flags.DEFINE_string("to_torch", None, "The torch file to write.")
_EMA = flags.DEFINE_bool("ema", False, "Take the moving average of the weights.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what stands at the output.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Classes of the head.")
_CT_SIZE = flags.DEFINE_integer("ct_size", None, "Side of a window's square of carrier tokens.")
_RESOLUTION = flags.DEFINE_list("resolution", None, "Image size: a side, or height,width.")
_WINDOW_SIZE = flags.DEFINE_list("window_size", None, "Window sides of the four stages: a,b,c,d.")
_HAT = flags.DEFINE_list("hat", None, "For each stage, true or false: is it hierarchical?")


def main(_) -> None:
    """Converts, in the direction that the flags say."""
    from fastervit_jax.conversion.convert import convert_checkpoint, export_to_torch

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
            **_options(),
        )
    elif all(outwards.values()) and not any(inwards.values()):
        if _options():
            raise ValueError(
                f"--{next(iter(_options()))} has no meaning here: weights are written as they are."
            )
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


def _options() -> dict:
    """Model options among the flags that were given."""
    options = {
        "num_classes": _NUM_CLASSES.value,
        "ct_size": _CT_SIZE.value,
        "resolution": _numbers("resolution", _RESOLUTION.value),
        "window_size": _numbers("window_size", _WINDOW_SIZE.value),
        "hat": _booleans("hat", _HAT.value),
    }
    if options["resolution"] is not None and len(options["resolution"]) == 1:
        options["resolution"] = options["resolution"] * 2
    return {option: value for option, value in options.items() if value is not None}


def _numbers(flag: str, words: list[str] | None) -> tuple[int, ...] | None:
    if words is None:
        return None
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise ValueError(
            f"--{flag}={','.join(words)}: give whole numbers, separated by commas."
        ) from None


def _booleans(flag: str, words: list[str] | None) -> tuple[bool, ...] | None:
    if words is None:
        return None
    if not {word.lower() for word in words} <= {"true", "false"}:
        raise ValueError(f"--{flag}={','.join(words)}: give true or false, separated by commas.")
    return tuple(word.lower() == "true" for word in words)


if __name__ == "__main__":
    cli.run(main)
