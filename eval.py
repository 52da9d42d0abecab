"""Evaluates a FasterViT: python eval.py --weights=PATH --dataset=SPEC [--model=NAME]."""

import json

from absl import flags

from fastervit_jax import cli

_MODEL = flags.DEFINE_string("model", None, "Model name; left out for a work directory.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "A converted directory, an official torch file, or train.py's work directory."
)
_DATASET = flags.DEFINE_string(
    "dataset", None, "tfds:NAME@SPLIT or folder:PATH; for a work directory its own validation set."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS sets are prepared.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes that decode.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write the result to.")
_USE_AVERAGE = flags.DEFINE_bool(
    "use_average", True, "For a work directory: the moving average of the weights, or the last."
)
flags.mark_flags_as_required(["weights"])


def main(_) -> None:
    """Evaluates."""
    from etils import epath

    from fastervit_jax.data import EvalTransform, open_source
    from fastervit_jax.evaluation.run import evaluate_model
    from fastervit_jax.training.workdir import load_trained

    trained = load_trained(_WEIGHTS.value, average=_USE_AVERAGE.value)
    config = trained.config
    source = open_source(
        _DATASET.value or config.data.validation,
        data_dir=_DATA_DIR.value or config.data.data_dir,
    )
    transform = EvalTransform(
        trained.model.config.resolution,
        config.evaluation.crop_fraction,
        config.evaluation.crop_mode,
    )
    evaluation = evaluate_model(
        trained.model,
        source,
        transform,
        batch_size=_BATCH_SIZE.value,
        num_workers=_NUM_WORKERS.value,
    )
    result = json.dumps(evaluation.summary())
    if _JSON.value:
        epath.Path(_JSON.value).write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    cli.run(main)
