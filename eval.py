"""Evaluates a FasterViT: eval.py --weights=PATH [--model=NAME] --dataset=SPEC.

The last line of its output is one JSON object: images, top1, top5 (0 to 1), loss and more.
With --all it fills the published table: eval.py --all --weights_dir=DIR --data_dir=DIR.
"""

import json
import sys

from absl import flags

from fastervit_jax.commands import flags as cli

_MODEL = flags.DEFINE_string(
    "model", None, "Model name; may be left out where the weights say what they are."
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "A converted directory, an official torch file, or a work directory of train.py.",
)
_DATASET = flags.DEFINE_multi_string(
    "dataset",
    [],
    "A benchmark (imagenet, imagenet-a, imagenet-r, imagenet-v2, imagenet-real, imagenet-sketch), "
    "which TFDS has prepared; BENCHMARK:folder:PATH, with class identifiers for folders; or any "
    "folder:PATH or tfds:NAME[/CONFIG[:VERSION]]@SPLIT. By default, for a work directory, what it "
    "was validated on. With --all it may be given several times.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS sets are prepared.")
_REAL_LABELS = flags.DEFINE_string(
    "real_labels", None, "real.json, for --dataset=imagenet-real:folder:PATH."
)
_CROP_MODE = flags.DEFINE_enum(
    "crop_mode", None, ["center", "squash"], "By default the model's or the benchmark's own."
)
_CROP_FRACTION = flags.DEFINE_float(
    "crop_fraction", None, "By default the model's or the benchmark's own."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images a step.", lower_bound=1)
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes that decode.", lower_bound=0)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "Type of the computation; by default a work directory's own, else float32.",
)
_DEPLOY = flags.DEFINE_bool("deploy", False, "Evaluate the folded network of model.deploy().")
_USE_AVERAGE = flags.DEFINE_bool(
    "use_average", None, "The moving average of the weights; by default for work directories alone."
)
_JSON = flags.DEFINE_string(
    "json", None, "File for the result, with every class, confused pairs and calibration."
)
_PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "CSV file for every image's file, label and best answers."
)
_REPORT = flags.DEFINE_string("report", None, "Directory for report.html.")
_ALL = flags.DEFINE_bool("all", False, "Fill the published table.")
_WEIGHTS_DIR = flags.DEFINE_string("weights_dir", None, "Where --all looks for converted weights.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "File for the table of --all.")
_model_options = cli.define_model_flags()
_join_hosts = cli.define_host_flags()


def main(_) -> None:
    """Evaluates."""
    from fastervit_jax.evaluation.result import check_destination
    from fastervit_jax.evaluation.run import EvaluationOptions

    check_destination("--json", _JSON.value)
    _join_hosts()
    options = EvaluationOptions(
        batch_size=_BATCH_SIZE.value,
        num_workers=_NUM_WORKERS.value,
        crop_mode=_CROP_MODE.value,
        crop_fraction=_CROP_FRACTION.value,
        deploy=_DEPLOY.value,
        say=_say,
    )
    if _ALL.value:
        fill_table(options)
    else:
        evaluate_one(options)


def _say(line: str) -> None:
    """Prints a line, once for all hosts."""
    if _is_first_host():
        print(line, flush=True)


def _is_first_host() -> bool:
    import jax

    return jax.process_index() == 0


def evaluate_one(options) -> None:
    """Evaluates one network on one data set."""
    from fastervit_jax.evaluation.report import check_report_directory, write_report
    from fastervit_jax.evaluation.result import check_destination, details_json, predictions_csv
    from fastervit_jax.evaluation.run import evaluate_weights
    from fastervit_jax.data.paths import write_whole

    if not _WEIGHTS.value:
        raise ValueError(
            "--weights is missing: name a converted directory, file or work directory."
        )
    if _WEIGHTS_DIR.value or _MARKDOWN.value:
        raise ValueError("--weights_dir and --markdown belong to --all.")
    if len(_DATASET.value) > 1:
        raise ValueError("Several --dataset belong to --all: name one.")
    check_destination("--predictions", _PREDICTIONS.value)
    check_report_directory(_REPORT.value)
    result = evaluate_weights(
        _WEIGHTS.value,
        _DATASET.value[0] if _DATASET.value else None,
        model_name=_MODEL.value,
        model_options=_model_options(),
        average=_USE_AVERAGE.value,
        data_dir=_DATA_DIR.value,
        real_labels=_REAL_LABELS.value,
        dtype=_DTYPE.value,
        options=options,
    )
    if not _is_first_host():
        return
    for line in result.lines():
        options.say(line)
    if _PREDICTIONS.value:
        write_whole(_PREDICTIONS.value, predictions_csv(result))
    if _REPORT.value:
        options.say(f"report: {write_report(result, _REPORT.value)}")
    if _JSON.value:
        write_whole(_JSON.value, details_json(result))
    cli.print_result(json.dumps({**result.summary(), **result.settings()}, allow_nan=False))


def fill_table(options) -> None:
    """Evaluates all converted networks on all benchmarks."""
    from fastervit_jax.evaluation.result import check_destination
    from fastervit_jax.evaluation.table import evaluate_all
    from fastervit_jax.data.paths import write_whole

    if not _WEIGHTS_DIR.value:
        raise ValueError("--all needs --weights_dir: where to look for converted weights.")
    single = {
        "weights": _WEIGHTS.value,
        "model": _MODEL.value,
        "use_average": _USE_AVERAGE.value,
        "predictions": _PREDICTIONS.value,
        "report": _REPORT.value,
        **_model_options(),
    }
    given = [name for name, value in single.items() if value is not None]
    if given:
        raise ValueError(f"--{given[0]} cannot be given with --all, which takes every model as is.")
    check_destination("--markdown", _MARKDOWN.value)
    table = evaluate_all(
        _WEIGHTS_DIR.value,
        _DATASET.value,
        data_dir=_DATA_DIR.value,
        real_labels=_REAL_LABELS.value,
        dtype=_DTYPE.value,
        options=options,
    )
    if not _is_first_host():
        return
    options.say(table.markdown())
    if _MARKDOWN.value:
        write_whole(_MARKDOWN.value, table.markdown() + "\n")
    cli.print_result(json.dumps(table.as_json(), allow_nan=False), file=_JSON.value)
    if table.problems:
        # The table is whole and written; the exit code says that cells of it failed.
        sys.exit(f"error: {len(table.problems)} cells failed; the first: {table.problems[0]}")


if __name__ == "__main__":
    cli.run(main)
