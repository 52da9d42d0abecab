"""Evaluates a FasterViT: python eval.py --model=NAME --weights=PATH --dataset=SPEC.

The last line of its output is one JSON object: images, top1, top5 (0 to 1) and loss.
"""

import json

from absl import flags

from fastervit_jax import cli

_MODEL = flags.DEFINE_string(
    "model", None, "Model name; may be left out where the weights say what they are."
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A converted directory, an official torch file, or a work directory of train.py.",
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "folder:PATH or tfds:NAME[/CONFIG[:VERSION]]@SPLIT; by default, for a work directory, what it "
    "was validated on.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS sets are prepared.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes that decode.", lower_bound=0)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Type of the computation; by default a work directory's own, else float32.",
)
_JSON = flags.DEFINE_string("json", None, "File to write the result to as well.")
_USE_AVERAGE = flags.DEFINE_bool(
    "use_average", None, "The moving average of the weights; by default for work directories alone."
)
_model_options = cli.define_model_flags()
flags.mark_flags_as_required(["weights"])


def main(_) -> None:
    """Evaluates."""
    from fastervit_jax.evaluation.run import evaluate_weights

    evaluation = evaluate_weights(
        _WEIGHTS.value,
        _DATASET.value,
        model_name=_MODEL.value,
        model_options=_model_options(),
        average=_USE_AVERAGE.value,
        data_dir=_DATA_DIR.value,
        batch_size=_BATCH_SIZE.value,
        num_workers=_NUM_WORKERS.value,
        dtype=_DTYPE.value,
    )
    cli.print_result(json.dumps(evaluation.summary()), file=_JSON.value)


if __name__ == "__main__":
    cli.run(main)
