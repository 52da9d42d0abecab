"""Evaluates a FasterViT: fastervit eval --weights=PATH [--model=NAME] --dataset=SPEC.

The last line of standard output is one JSON object: images, top1, top5 (0 to 1), loss and more.
With --all it fills the published table: fastervit eval --all --weights_dir=DIR --data_dir=DIR.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, cast

import jax
from absl import flags

from fastervit_jax.commands.flags import (
    define_decoding_flags,
    define_host_flags,
    define_model_flags,
    define_scales_flag,
    print_result,
)
from fastervit_jax.data.paths import write_whole
from fastervit_jax.data.preprocessing import CropMode
from fastervit_jax.evaluation.report import check_report_directory, write_report
from fastervit_jax.evaluation.result import check_destination, details_json, predictions_csv
from fastervit_jax.evaluation.run import EvaluationOptions, evaluate_weights
from fastervit_jax.evaluation.table import evaluate_all
from fastervit_jax.models import family_of
from fastervit_jax.weights.loading import stored_model_name


def command() -> Callable[[list[str]], None]:
    """Defines the flags of `fastervit eval`, and returns what runs it."""
    model = flags.DEFINE_string(
        "model", None, "Model name. Not needed where the weights contain it."
    )
    weights = flags.DEFINE_string(
        "weights",
        None,
        "A converted directory, an official torch file, or a work directory of a run.",
    )
    dataset = flags.DEFINE_multi_string(
        "dataset",
        [],
        "What to evaluate on: a benchmark that TFDS has prepared (imagenet, imagenet-a, "
        "imagenet-r, imagenet-v2, imagenet-real, imagenet-sketch), BENCHMARK:folder:PATH with "
        "class identifiers as folder names, folder:PATH, or "
        "tfds:NAME[/CONFIG[:VERSION]]@SPLIT. Default for a work directory: its validation set. "
        "With --all it can be given several times.",
    )
    data_dir = flags.DEFINE_string("data_dir", None, "Directory of prepared TFDS sets.")
    real_labels = flags.DEFINE_string(
        "real_labels", None, "The file real.json, for --dataset=imagenet-real:folder:PATH."
    )
    crop_mode = flags.DEFINE_enum(
        "crop_mode", None, ["center", "squash"], "Default: that of the benchmark or the model."
    )
    crop_fraction = flags.DEFINE_float(
        "crop_fraction", None, "Default: that of the benchmark or the model."
    )
    transparency, exif = define_decoding_flags(exif=None)
    batch_size = flags.DEFINE_integer(
        "batch_size",
        None,
        "Images per batch; default: 128, 1 for detectors, 8 for segmenters.",
        lower_bound=1,
    )
    num_workers = flags.DEFINE_integer(
        "num_workers",
        0,
        "Number of processes that decode images. Segmenters use threads instead.",
        lower_bound=0,
    )
    dtype = flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Type of the computation. Default: that of the run for a work directory, else float32.",
    )
    deploy = flags.DEFINE_bool("deploy", False, "Evaluate the folded network of model.deploy().")
    ema = flags.DEFINE_bool(
        "ema",
        None,
        "Evaluate the EMA of the weights. Default: yes for a work directory, no otherwise.",
    )
    mode = flags.DEFINE_enum(
        "mode", None, ["slide", "whole"], "Segmenters: sliding windows, or the whole image."
    )
    scales = define_scales_flag(None)
    flip = flags.DEFINE_bool("flip", None, "Segmenters: also average over mirrored images.")
    json_file = flags.DEFINE_string(
        "json", None, "JSON file for the result, accuracy per class, confusions and calibration."
    )
    predictions = flags.DEFINE_string(
        "predictions", None, "CSV file for the file name, label and best classes of every image."
    )
    report = flags.DEFINE_string("report", None, "Directory for report.html.")
    fill_all = flags.DEFINE_bool("all", False, "Evaluate all models on all benchmarks.")
    weights_dir = flags.DEFINE_string(
        "weights_dir", None, "Directory of the converted weights, with --all."
    )
    markdown = flags.DEFINE_string("markdown", None, "Markdown file for the table, with --all.")
    model_options = define_model_flags()
    join_hosts = define_host_flags()

    def main(_) -> None:
        check_destination("--json", json_file.value)
        join_hosts()
        options = EvaluationOptions(
            batch_size=batch_size.value or 128,
            num_workers=num_workers.value,
            crop_mode=cast(CropMode | None, crop_mode.value),
            crop_fraction=crop_fraction.value,
            transparency=transparency.value,
            exif=exif.value,
            deploy=deploy.value,
            say=_say,
        )
        if fill_all.value:
            fill_table(options)
        else:
            evaluate_one(options)

    def evaluate_one(options) -> None:
        if not weights.value:
            raise ValueError(
                "Missing --weights: expected a converted directory, a file or a work directory."
            )
        name = model.value or stored_model_name(weights.value)
        task = family_of(name).task if name else "classification"
        by_task[task](weights.value, options)

    def evaluate_classifier(path: str, options) -> None:
        if weights_dir.value or markdown.value:
            raise ValueError("Invalid flags: --weights_dir and --markdown need --all.")
        if len(dataset.value) > 1:
            raise ValueError("Invalid --dataset: expected one data set without --all.")
        check_destination("--predictions", predictions.value)
        check_report_directory(report.value)
        result = evaluate_weights(
            path,
            dataset.value[0] if dataset.value else None,
            model_name=model.value,
            model_options=model_options(),
            ema=ema.value,
            data_dir=data_dir.value,
            real_labels=real_labels.value,
            dtype=dtype.value,
            options=options,
        )
        if not _is_first_host():
            return
        for line in result.lines():
            options.say(line)
        if predictions.value:
            write_whole(predictions.value, predictions_csv(result))
        if report.value:
            options.say(f"report: {write_report(result, report.value)}")
        if json_file.value:
            write_whole(json_file.value, details_json(result))
        print_result(json.dumps({**result.summary(), **result.settings()}, allow_nan=False))

    def evaluate_detector(path: str, options) -> None:
        from fastervit_jax.detection import report as detection_report
        from fastervit_jax.detection.run import evaluate_weights as evaluate_detector_weights

        evaluate_other(
            evaluate_detector_weights,
            detection_report,
            path,
            options,
            batch_size=batch_size.value or 1,
            num_workers=num_workers.value,
        )

    def evaluate_segmenter(path: str, options) -> None:
        from fastervit_jax.segmentation import report as segmentation_report
        from fastervit_jax.segmentation.run import evaluate_weights as evaluate_segmenter_weights

        if num_workers.value:
            options.say("--num_workers has no effect: segmenters decode images in threads.")
        evaluate_other(
            evaluate_segmenter_weights,
            segmentation_report,
            path,
            options,
            batch_size=batch_size.value or 8,
            mode=mode.value,
            scales=scales(),
            flip=flip.value,
        )

    def evaluate_other(evaluate, reports: Any, path: str, options, **more) -> None:
        """Evaluates a network for another task than classification.

        Args:
            evaluate: the `evaluate_weights` of the task.
            reports: the module `report` of the task.
            path: the weights.
            options: of all evaluations.
            **more: further arguments of `evaluate`.
        """
        for flag in (predictions, real_labels, weights_dir, markdown):
            if flag.value:
                raise ValueError(f"Invalid --{flag.name}: it belongs to classifiers.")
        if len(dataset.value) > 1:
            raise ValueError("Invalid --dataset: expected one data set.")
        check_report_directory(report.value)
        result = evaluate(
            path,
            dataset.value[0] if dataset.value else None,
            model_name=model.value,
            model_options=model_options(),
            ema=ema.value,
            data_dir=data_dir.value,
            dtype=dtype.value,
            transparency=transparency.value,
            exif=exif.value,
            say=options.say,
            **more,
        )
        if not _is_first_host():
            return
        for line in reports.lines(result):
            options.say(line)
        if report.value:
            options.say(f"report: {reports.write_report(result, report.value)}")
        if json_file.value:
            write_whole(json_file.value, reports.details_json(result))
        print_result(json.dumps(result.summary(), allow_nan=False))

    by_task = {
        "classification": evaluate_classifier,
        "detection": evaluate_detector,
        "segmentation": evaluate_segmenter,
    }

    def fill_table(options) -> None:
        if not weights_dir.value:
            raise ValueError(
                "Missing --weights_dir: --all needs the directory of the converted weights."
            )
        single = {
            "weights": weights.value,
            "model": model.value,
            "ema": ema.value,
            "predictions": predictions.value,
            "report": report.value,
            **model_options(),
        }
        given = [name for name, value in single.items() if value is not None]
        if given:
            raise ValueError(
                f"Invalid --{given[0]} with --all, which evaluates every model as it is."
            )
        check_destination("--markdown", markdown.value)
        table = evaluate_all(
            weights_dir.value,
            dataset.value,
            data_dir=data_dir.value,
            real_labels=real_labels.value,
            dtype=dtype.value,
            options=options,
        )
        if not _is_first_host():
            return
        options.say(table.markdown())
        if markdown.value:
            write_whole(markdown.value, table.markdown() + "\n")
        print_result(json.dumps(table.as_json(), allow_nan=False), file=json_file.value)
        if table.problems:
            # The table is whole and written; the exit code says that cells of it failed.
            sys.exit(f"error: {len(table.problems)} cells failed; the first: {table.problems[0]}")

    return main


def _say(line: str) -> None:
    """Prints a line, once for all hosts."""
    if _is_first_host():
        print(line, flush=True)


def _is_first_host() -> bool:
    return jax.process_index() == 0
